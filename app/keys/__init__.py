"""API keys and usage: the routes and the command."""
