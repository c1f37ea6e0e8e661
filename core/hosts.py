"""Hosts in addresses and in the Host header."""

import ipaddress

# The names by which browsers reach a service on this machine.
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a service that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(authority: str) -> str:
    """The host in `authority` (RFC 9110, 7.2) without its port, in lower case."""
    if authority.startswith("["):  # an IPv6 address
        return authority.partition("]")[0].lower() + "]"
    return authority.partition(":")[0].lower()
