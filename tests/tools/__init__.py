"""Tool bundles, the registry, and the reader of a project directory."""
