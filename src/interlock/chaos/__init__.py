"""Fault injection into a real deployment, judged by a counter outside it."""
