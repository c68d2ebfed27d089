"""The store against a real server; the outside observer is a connection of the owner's, past row-level security."""
