"""Traces and logs. `names` holds every attribute, span and event name."""
