"""Controls: admission of calls (circuit breakers, tool health, quotas)."""
