"""Telling the world: what happened leaves at least once, in order, and signed."""
