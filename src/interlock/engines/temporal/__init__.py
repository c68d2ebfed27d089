"""The scale-out engine: Temporal holds queue, timers and signals; PostgreSQL stays the system of record."""
