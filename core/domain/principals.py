"""The principal of a request: the caller, and what the caller may do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from core.domain.records import PUBLIC_TENANT


class Scope(StrEnum):
    """What an API key permits. No scope includes another."""

    CLASSIFY = "classify"  # upload images
    READ = "read"  # results, images, usage
    JOBS = "jobs"  # create, watch and cancel jobs
    ADMIN = "admin"  # delete images, keys, dead letters; usage of the whole tenant
    OPERATOR = "operator"  # data of all tenants, such as metrics


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. Everything that it stores and sees belongs to `tenant`.

    `key_id` stays the same when the key is rotated, so objects can belong to it. It is empty for
    an anonymous caller.
    """

    tenant: str
    key_id: str
    scopes: frozenset[Scope]


# Every caller, if API keys are not required.
ANONYMOUS = Principal(PUBLIC_TENANT, "", ALL_SCOPES)


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes with these names; `all` means every scope.

    Raises ValueError if a name is unknown or there is no name.
    """
    wanted = {name.strip() for name in names if name.strip()}
    if wanted == {"all"}:
        return ALL_SCOPES
    unknown = sorted(wanted - set(Scope))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a scope; the scopes are {', '.join(Scope)}")
    if not wanted:
        raise ValueError(f"a key needs a scope: {', '.join(Scope)}")
    return frozenset(Scope(name) for name in wanted)
