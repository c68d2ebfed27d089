"""One suite for every engine: scenarios as data, and the same journal from each of them. README.md explains the format."""
