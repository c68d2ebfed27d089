"""Controls: what may not pass in either direction — personal data, secrets, injected orders."""
