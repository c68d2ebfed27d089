"""Floor 7: evaluation of workflows on recorded cases."""
