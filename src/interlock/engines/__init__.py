"""Drivers of the state machine on PostgreSQL, on Temporal and in memory. They translate its commands and nothing else."""
