"""Releases to Cloud Run, and the smoke test."""
