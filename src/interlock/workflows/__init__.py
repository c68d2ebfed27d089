"""The workflow language: definitions as data, checked before deployment. No I/O, clock or randomness.

- `source`      YAML text to data with line numbers
- `spec`        the workflow language
- `contracts`   tool contracts
- `prompts`     versioned templates with typed slots
- `bindings`    expressions that name where a step's values come from
- `schemas`     JSON Schema validation
- `facts`       the enum, boolean and number fields that conditions may read
- `check`       consistency of a workflow with its prompts, tools and models
- `visibility`  which steps' results a step may read
"""
