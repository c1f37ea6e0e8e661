"""Which tenants have work that is due: one index over all tenants.

A query covers one namespace, and each tenant has one of its own. A query of each namespace would
make every run of the scheduler and the reconciler as expensive as there are tenants. Therefore a
mark, one entity for a tenant and a kind of work in a common namespace, has a lower bound of the
moments of this work: no work of the tenant is due before its mark. A tenant without a mark has no
work, and work of a later time costs nothing until then.

A writer notes the moment before it stores the work. A process remembers for a short time what it
has noted, so that most writes cost nothing. Only the reader of the index raises a mark, to the
moment of the next work that it finds, and not beyond the present while writers may still rely on
the old one.
"""

import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from cachetools import LRUCache

from core.backends.google.datastore import Datastore, RawMutation
from core.backends.google.entities import RawEntity, moment_of, set_time
from core.backends.google.entity_locks import EntityLocks
from core.backends.google.queries import query_for
from core.clock import Clock
from core.concurrency import for_each
from core.errors import Unavailable

T = TypeVar("T")

KIND = "Due"
RESOLUTION = timedelta(microseconds=1)  # the precision of times in Datastore
# Of an index whose entries grow with the time, against one hot spot:
# https://cloud.google.com/datastore/docs/best-practices
SHARDS = 8
MAX_TENANTS = 200  # tenants that one run of a reader visits; the oldest marks come first
AT_ONCE = 16
LOCK_SECONDS = 8.0  # the time limit of a transaction
REMEMBERED = timedelta(seconds=30)  # how long a process remembers what it has noted
QUIET = timedelta(
    seconds=60
)  # after the last note, a mark is raised at most to the present for so long
SKEW = timedelta(seconds=5)  # the largest difference between clocks
MAX_REMEMBERED = 10_000  # tenants
_MOMENT, _NOTED_AT, _DUE = "moment", "noted_at", "due"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Mark:
    """No work of the tenant is due before `moment`. `noted_at` is when a writer noted it last."""

    tenant: str
    moment: datetime
    noted_at: datetime


class DueIndex:
    """The marks of one kind of work, for example jobs."""

    def __init__(self, datastore: Datastore, work: str, clock: Clock) -> None:
        self._datastore = datastore
        self._work = work
        self._clock = clock
        self._locks = EntityLocks()
        self._noted: LRUCache[str, tuple[datetime, datetime]] = LRUCache(MAX_REMEMBERED)

    async def note(self, tenant: str, moment: datetime) -> None:
        """Note that the tenant gets work that is due at `moment`. Raises Unavailable."""
        if self._is_noted(tenant, moment):
            return
        try:
            async with self._locks.lock(tenant, LOCK_SECONDS):
                # Another request of this process may have noted it meanwhile.
                if not self._is_noted(tenant, moment):
                    await self._lower(tenant, moment)
        except TimeoutError:
            raise Unavailable(f"The {self._datastore.part} does not answer.") from None

    def _is_noted(self, tenant: str, moment: datetime) -> bool:
        now = self._clock()
        lowest, noted_at = self._noted.get(tenant, (moment, _EPOCH))
        return lowest <= moment and now - REMEMBERED < noted_at <= now

    async def _lower(self, tenant: str, moment: datetime) -> None:
        now = self._clock()

        async def lower(transaction: bytes) -> tuple[datetime, list[Any]]:
            before = await self._datastore.find_in(self._key(tenant), transaction)
            mark = Mark(tenant, moment, now)
            if before is not None:
                mark = Mark(tenant, min(moment, moment_of(before.properties[_MOMENT])), now)
            return mark.moment, [RawMutation(upsert=self._entity_of(mark))]

        self._noted[tenant] = (await self._datastore.transact(lower), now)

    async def due(self, before: datetime) -> list[Mark]:
        """The marks before this moment, at most `MAX_TENANTS`, oldest first. Raises Unavailable."""
        marks: list[Mark] = []

        async def query(shard: int) -> None:
            low, high = self._due_text(shard, _EPOCH), self._due_text(shard, before)
            bounds = ((_DUE, ">=", low), (_DUE, "<", high))
            wanted = query_for(KIND, *bounds, order=_DUE, limit=MAX_TENANTS)
            entities = await self._datastore.query_namespace(self._namespace, wanted)
            marks.extend(_mark_of(entity) for entity in entities)

        await for_each(range(SHARDS), query, SHARDS)
        return sorted(marks, key=lambda mark: mark.moment)[:MAX_TENANTS]

    async def settle(self, mark: Mark, following: datetime | None) -> None:
        """Raise a mark to the moment of the tenant's next work, or drop it if that is None.

        Does nothing if a writer has noted something since the mark was read. Raises Unavailable.
        """
        now = self._clock()
        quiet = not now - QUIET < mark.noted_at <= now

        async def raise_(transaction: bytes) -> tuple[None, list[Any]]:
            before = await self._datastore.find_in(self._key(mark.tenant), transaction)
            if before is None or _mark_of(before) != mark:
                return None, []
            if following is None and quiet:
                return None, [RawMutation(delete=before.key)]
            moment = following or now - SKEW
            if not quiet:
                moment = min(moment, now - SKEW)
            if moment <= mark.moment:
                return None, []
            after = Mark(mark.tenant, moment, mark.noted_at)
            return None, [RawMutation(update=self._entity_of(after))]

        await self._datastore.transact(raise_)

    async def collect(
        self,
        before: datetime,
        limit: int,
        query: Any,
        work_of: Callable[[Any], T],
        due_at: Callable[[T], datetime],
    ) -> list[T]:
        """At most `limit` pieces of work before this moment, taken in turns from the tenants.

        Sorted by their moments. `query` finds a tenant's first work, in the order of the moments:
        all of it, or at least `limit` pieces. `work_of` reads an entity. Raises Unavailable.
        """
        found: list[Sequence[tuple[datetime, T]]] = []

        async def visit(mark: Mark) -> None:
            entities = await self._datastore.query(mark.tenant, query)
            work = [(due_at(each), each) for each in map(work_of, entities)]
            due = [each for each in work if each[0] < before]
            if due:
                found.append(due)
            first = work[0][0] if work else None
            if first != mark.moment:
                await self.settle(mark, first)

        await for_each(await self.due(before), visit, AT_ONCE)
        taken = in_turns(found, limit)
        return [work for _, work in sorted(taken, key=lambda each: each[0])]

    async def purge(
        self,
        before: datetime,
        limit: int,
        of_tenant: Callable[[str, int], Awaitable[tuple[int, datetime | None]]],
    ) -> int:
        """Purge at most `limit` pieces of what is older than this moment. Returns how many.

        `of_tenant` purges at most so many of a tenant. It returns their number, and the moment of
        the oldest one that is left, or None. Raises Unavailable.
        """
        purged = 0
        for mark in await self.due(before):
            if purged >= limit:
                break
            count, oldest = await of_tenant(mark.tenant, limit - purged)
            purged += count
            if oldest != mark.moment:
                await self.settle(mark, oldest)
        return purged

    @property
    def _namespace(self) -> str:
        return self._datastore.keys.tenants_namespace

    def _key(self, tenant: str) -> Any:
        return self._datastore.keys.path(self._namespace, (KIND, f"{self._work}:{tenant}"))

    def _entity_of(self, mark: Mark) -> Any:
        entity = RawEntity(key=self._key(mark.tenant))
        shard = zlib.crc32(mark.tenant.encode()) % SHARDS
        set_time(entity.properties[_MOMENT], mark.moment)
        set_time(entity.properties[_NOTED_AT], mark.noted_at)
        entity.properties[_DUE].string_value = self._due_text(shard, mark.moment)
        return entity

    def _due_text(self, shard: int, moment: datetime) -> str:
        micros = (moment - _EPOCH) // timedelta(microseconds=1)
        return f"{self._work}:{shard}:{max(0, micros):017d}"


def _mark_of(entity: Any) -> Mark:
    tenant = entity.key.path[0].name.partition(":")[2]
    fields = entity.properties
    return Mark(tenant, moment_of(fields[_MOMENT]), moment_of(fields[_NOTED_AT]))


def in_turns(by_tenant: Sequence[Sequence[T]], limit: int) -> list[T]:
    """At most `limit` pieces of work: the first of each tenant, then the second of each."""
    taken: list[T] = []
    for turn in range(max(map(len, by_tenant), default=0)):
        taken += [work[turn] for work in by_tenant if turn < len(work)]
        if len(taken) >= limit:
            break
    return taken[:limit]
