"""Fault injection: a real deployment, real faults, and a counter outside that says what really happened."""
