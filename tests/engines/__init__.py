"""The PostgreSQL engine under faults: real processes, a real database, a bank outside that counts."""
