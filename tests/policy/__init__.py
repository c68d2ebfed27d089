"""Policy as code: whoever is not permitted is refused, and whatever goes wrong refuses."""
