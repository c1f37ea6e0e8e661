"""E-mail addresses that Glimpse writes to: plain ones, in domains that the operator named.

A service that mails whoever its users name is a way to pester strangers. So by default only the
domain of the sender is written to.
"""

import re
from collections.abc import Collection

from core.errors import InvalidRequest

ANY_DOMAIN = "*"
# RFC 5321, less quoted local parts and address literals, which nobody has; in ASCII.
_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?=.{{3,254}}\Z){_LOCAL}@(?P<domain>{_LABEL}(?:\.{_LABEL})*)\Z")
_LONGEST_LOCAL = 64


def domain_of(address: str) -> str:
    """The domain, in lower case. Raises ValueError where `address` is not a plain one."""
    found = _ADDRESS.match(address)
    if found is None or len(address.partition("@")[0]) > _LONGEST_LOCAL:
        raise ValueError("an e-mail address is written as in ada@example.com")
    return found["domain"].lower()


def check_address(address: str, domains: Collection[str], field: str = "notify_email") -> None:
    """Raise InvalidRequest unless mail may go to `address`.

    `domains` as in `Settings.email_domains`: none where there is no e-mail, `*` for any.
    """
    if not domains:
        raise InvalidRequest("This service sends no e-mail.", extra={"field": field})
    try:
        domain = domain_of(address)
    except ValueError as wrong:
        raise InvalidRequest(f"The parameter {field}: {wrong}.", extra={"field": field}) from None
    if ANY_DOMAIN not in domains and domain not in domains:
        raise InvalidRequest(
            f"The parameter {field}: this service does not write to that domain.",
            extra={"field": field},
        )
