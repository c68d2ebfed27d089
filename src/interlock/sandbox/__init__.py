"""Isolation of tools: one protocol, one file a back end. Called by `tools` only."""
