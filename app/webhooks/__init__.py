"""Webhooks: routes and service."""
