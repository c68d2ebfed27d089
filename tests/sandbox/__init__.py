"""Real sandboxes throughout: the tools below are hostile, and the host looks for itself what they achieved."""
