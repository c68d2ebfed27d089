"""A door: the HTTP API."""
