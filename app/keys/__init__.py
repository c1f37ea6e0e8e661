"""API keys and usage: routes, service and command."""
