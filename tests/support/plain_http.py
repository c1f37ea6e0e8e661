"""Clients of plain HTTP that start quickly."""

import ssl

# Give it to httpx as `verify`. By default, each `httpx.Client` and each call such as `httpx.get`
# reads all certificate authorities, which takes 16 ms of CPU time.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
