"""The engine in memory: the machine driven without I/O, and random programs under random faults checked on it."""
