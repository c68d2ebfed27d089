"""Fault injection into a real deployment, checked by a counter outside it."""
