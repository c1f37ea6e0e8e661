"""The HTTP edge of the worker: authentication, envelopes, acknowledgements."""
