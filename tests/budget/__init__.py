"""What things cost, and what a run may spend."""
