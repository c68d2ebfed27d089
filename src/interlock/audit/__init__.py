"""Controls: the audit log and its verifiers."""
