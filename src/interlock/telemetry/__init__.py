"""Floor 2: traces and logs. `names` holds every attribute, span and event name."""
