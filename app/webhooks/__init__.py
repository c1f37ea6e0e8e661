"""Webhooks: routes, service and representation."""
