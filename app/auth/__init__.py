"""Authentication and authorisation: keys, scopes, limits and usage of each request."""
