"""Messages that used up their deliveries: what is kept of them, and how they are replayed."""
