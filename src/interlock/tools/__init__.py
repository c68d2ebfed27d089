"""Tools: contracts, pinned bundles, and the call into the sandbox. Called by `execution` only."""
