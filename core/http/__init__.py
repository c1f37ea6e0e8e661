"""HTTP parts that both services use."""
