"""Evaluation of workflows on recorded cases."""
