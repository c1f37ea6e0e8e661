"""Limits and header parsers for image files."""
