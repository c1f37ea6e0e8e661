"""Webhook and e-mail delivery."""
