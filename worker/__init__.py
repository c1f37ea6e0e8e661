"""The push worker: messages in, labels out."""
