"""Bounds and parsers for image files."""
