"""Fits a head, a linear classifier on the embeddings of a base model, to a tenant's labels."""
