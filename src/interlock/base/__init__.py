"""Types every package uses: errors, ids, clock, labels, refs, settings."""
