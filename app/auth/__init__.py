"""Authentication and authorization: keys, scopes, rate limits and usage."""
