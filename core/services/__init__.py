"""Work that both services do through ports."""
