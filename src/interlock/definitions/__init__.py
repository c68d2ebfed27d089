"""What is deployed: projects on disk and workflow versions."""
