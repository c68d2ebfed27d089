"""Types used by every package: errors, ids, clock, labels, refs, settings."""
