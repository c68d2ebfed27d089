"""Floor 6: drivers of the machine. They translate its commands and nothing else."""
