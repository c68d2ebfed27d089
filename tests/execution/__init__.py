"""The kernel and the intake, end to end: real database, real sandbox, a model behind real HTTP."""
