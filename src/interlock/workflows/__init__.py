"""Floor 1: what a workflow is, and the pure machine that runs one. No I/O, no clock, no randomness in here.

- `source`     YAML text → data with line numbers
- `spec`       the workflow language
- `contracts`  what a tool promises
- `prompts`    versioned templates with typed slots
- `bindings`   where a step's values come from
- `facts`      what control flow may see of a result
- `check`      whether the parts fit each other
- `program`    a checked workflow, flattened for the machine
- `events`     what goes into the machine and what comes out
- `machine`    `advance(program, state, event) -> (state, commands)`
- `retry`      when to try again, and how long to wait
"""
