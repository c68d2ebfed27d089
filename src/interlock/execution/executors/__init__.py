"""Executors of calls, which the kernel uses between its phases and nothing else does."""
