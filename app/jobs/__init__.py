"""Jobs: creation, options, representation, routes."""
