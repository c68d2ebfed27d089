"""Controls: prices, and the budget of a run."""
