"""The Temporal engine against the real test server: the same faults as beside it, and what only Temporal can do."""
