"""Checks the e-mail addresses that users choose: syntax, and domains that the operator allows.

A service that sends e-mail to any address that a user names can be abused to send spam. Therefore
Glimpse by default sends only to the domain of its own sender address.
"""

import re
from collections.abc import Collection

from core.errors import InvalidRequest

ANY_DOMAIN = "*"
# RFC 5321 in ASCII, without quoted local parts and address literals, which are rare.
_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?=.{{3,254}}\Z){_LOCAL}@(?P<domain>{_LABEL}(?:\.{_LABEL})*)\Z")
_LONGEST_LOCAL = 64


def domain_of(address: str) -> str:
    """The domain in lower case. Raises ValueError if `address` is not a plain e-mail address."""
    found = _ADDRESS.match(address)
    if found is None or len(address.partition("@")[0]) > _LONGEST_LOCAL:
        raise ValueError("an e-mail address has the form ada@example.com")
    return found["domain"].lower()


def check_address(address: str, domains: Collection[str]) -> None:
    """Raise InvalidRequest unless the service may send e-mail to `address`.

    `domains` is as in `Settings.email_domains`: empty if the service sends no e-mail, `*` for any.
    """
    field = "notify_email"
    if not domains:
        raise InvalidRequest("This service sends no e-mail.", extra={"field": field})
    try:
        domain = domain_of(address)
    except ValueError as wrong:
        raise InvalidRequest(f"The parameter {field}: {wrong}.", extra={"field": field}) from None
    if ANY_DOMAIN not in domains and domain not in domains:
        raise InvalidRequest(
            f"The parameter {field}: this service sends no e-mail to that domain.",
            extra={"field": field},
        )
