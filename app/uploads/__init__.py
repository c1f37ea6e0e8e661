"""Uploads: reading bytes within limits."""
