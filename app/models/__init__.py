"""Models: what the service can classify by."""
