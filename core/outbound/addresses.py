"""Decides which IP addresses belong to the public internet.

Follows the registries of special-purpose addresses (https://www.iana.org/assignments/
iana-ipv4-special-registry and iana-ipv6-special-registry). Python's `is_global` is not enough: it
includes multicast and tunnels that lead to private IPv4 addresses, and differs by release.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NOT_PUBLIC_4 = (IPv4Network("192.88.99.0/24"),)  # relays of 6to4 (RFC 7526)
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # IANA assigns nothing else to hosts of the internet
_NOT_PUBLIC_6 = (
    IPv6Network("2001::/23"),  # protocol assignments: Teredo (RFC 4380) and others
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4 (RFC 7526): contains an IPv4 address
    IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)
_MAPPED = IPv6Network("::ffff:0:0/96")  # IPv4-mapped (RFC 4291)
_NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 addresses behind a translator (RFC 6052)


def is_public(text: str) -> bool:
    """Whether `text` is an IP address of the public internet.

    For an IPv6 address that represents an IPv4 address (mapped, NAT64), the IPv4 address decides.
    Raises ValueError if `text` is not an IP address.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address not in _MAPPED and address not in _NAT64:
            return address in _GLOBAL_UNICAST and not any(
                address in network for network in _NOT_PUBLIC_6
            )
        address = IPv4Address(int(address) & 0xFFFF_FFFF)
    special = address.is_multicast or any(address in network for network in _NOT_PUBLIC_4)
    return address.is_global and not special
