"""What each message makes the worker do."""
