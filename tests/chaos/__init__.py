"""Fault injection: the counter, the verdict, every fault alone, and all of them together."""
