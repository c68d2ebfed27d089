"""Calls that travel in a provider's or tool's batch API."""
