"""Entry point: the HTTP API."""
