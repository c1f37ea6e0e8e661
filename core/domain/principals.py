"""Who is asking, and what they may do: the principal behind a request."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from core.domain.records import PUBLIC_TENANT


class Scope(StrEnum):
    """What a key may be used for. None contains another."""

    CLASSIFY = "classify"  # upload images
    READ = "read"  # results, images, usage
    JOBS = "jobs"  # create, watch and cancel jobs
    ADMIN = "admin"  # delete images, keys, dead letters; the whole tenant's usage


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. Everything that it stores and sees belongs to `tenant`.

    `key_id` outlives every rotation of the key, so it can own things; it is empty for anyone.
    """

    tenant: str
    key_id: str
    scopes: frozenset[Scope]


# Everyone, where no keys are asked for.
ANONYMOUS = Principal(PUBLIC_TENANT, "", ALL_SCOPES)


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes with these names; ValueError names one that is none, or says that there is none.

    `all` stands for every scope.
    """
    wanted = {name.strip() for name in names if name.strip()}
    if wanted == {"all"}:
        return ALL_SCOPES
    unknown = sorted(wanted - set(Scope))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no scope; there are {', '.join(Scope)}")
    if not wanted:
        raise ValueError(f"a key needs a scope: {', '.join(Scope)}")
    return frozenset(Scope(name) for name in wanted)
