"""Images: upload, lookup, results, deletion."""
