"""Classifier processes: pool, protocol, decoding and the model."""
