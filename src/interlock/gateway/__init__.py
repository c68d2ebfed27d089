"""The model gateway: one protocol for every provider, structured output on top. Reached only from the kernel."""
