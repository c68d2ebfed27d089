"""The default engine: PostgreSQL holds journal, queue, leases and signals; workers drive runs."""
