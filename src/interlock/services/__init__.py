"""Use cases: what API, command line and portal may ask for (submit, signal, review, administration)."""
