"""Deployed definitions: projects on disk and workflow versions."""
