"""Tools: contracts, pinned bundles, and the call into the sandbox. Reached only from the kernel."""
