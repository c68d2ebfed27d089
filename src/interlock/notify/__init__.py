"""Controls: notification of people and systems outside (webhook)."""
