"""Floor 0: the words every other floor speaks — errors, ids, clock, labels, refs, settings."""
