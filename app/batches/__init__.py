"""Batches of images: forms, zips, manifests and bucket prefixes."""
