"""Traces in the database and at a collector, and log lines that hold no secret."""
