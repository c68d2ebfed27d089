"""Isolation of tools: one protocol, one file for each back end. Called by `tools` only."""
