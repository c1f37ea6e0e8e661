"""Code for the environments of the other frameworks. Glimpse does not import it."""
