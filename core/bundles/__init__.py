"""Model bundles: format, cache and location."""
