"""The model gateway: one protocol for all providers, structured output. Called by `execution` only."""
