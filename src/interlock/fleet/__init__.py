"""Controls: the worker registry and draining."""
