"""Controls: whether a call may start now (circuit breakers, tool health, quotas)."""
