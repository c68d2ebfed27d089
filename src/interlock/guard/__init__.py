"""Controls: detectors for personal data, secrets and prompt injection."""
