"""The audit log against everybody who would like it to say something else, the database's owner included."""
