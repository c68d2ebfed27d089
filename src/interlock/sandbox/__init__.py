"""Isolation for tools: one protocol, one file a back end. Reached only through `tools/`."""
