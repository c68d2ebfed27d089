"""The orchestrator as a pure state machine: `advance(program, state, event) -> (state, commands)`. No I/O, clock or randomness.

- `program`     a checked workflow, flattened into nodes
- `version`     the machine version of a run, and how behaviour may change
- `names`       names of instances, timers, commands and effects
- `persistent`  mappings whose changed copy costs what changed
- `events`      journal events and commands
- `state`       the folded state of a run
- `transition`  one event's changes on a private copy of the state
- `machine`     event handlers, `advance`, `fold`
- `flow`        entering and leaving steps and containers
- `approvals`   acts of mutating tools that a person has to approve
- `failures`    retries, fallbacks, compensation, endings
- `retry`       backoff
"""
