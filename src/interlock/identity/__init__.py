"""Controls: authentication, roles and permissions."""
