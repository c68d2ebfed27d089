"""Interlock: run AI agents in production — observable, bounded, recoverable, provable."""
