"""The HTTP API, over real HTTP and a real database."""
