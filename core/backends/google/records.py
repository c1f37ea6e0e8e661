"""Records in Datastore. `core.records` decides each transition; this applies it in a transaction.

Right under both ways in which Datastore settles conflicts: optimistic, where the later commit is
aborted, and pessimistic, where readers of one record wait for each other. Every aborted
transaction is run again, from its read.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from heapq import nsmallest
from typing import Any, TypeVar

import grpc.aio
import structlog
from google.api_core.exceptions import (
    Aborted,
    AlreadyExists,
    InternalServerError,
    ServiceUnavailable,
)
from google.api_core.retry import AsyncRetry, if_exception_type
from google.cloud.datastore_v1 import DatastoreAsyncClient
from google.cloud.datastore_v1.services.datastore.transports import DatastoreGrpcAsyncIOTransport
from google.cloud.datastore_v1.types import (
    BeginTransactionRequest,
    CommitRequest,
    CommitResponse,
    Filter,
    LookupRequest,
    LookupResponse,
    Mutation,
    PropertyFilter,
    PropertyOrder,
    Query,
    QueryResultBatch,
    ReadOptions,
    RollbackRequest,
    RunQueryRequest,
    RunQueryResponse,
)

from core import records
from core.backends.google.entities import (
    RECORD_KIND,
    TENANT_KIND,
    UNFINISHED,
    Keys,
    RawEntity,
    RawValue,
    entity_of,
    record_of,
    time_value,
)
from core.backends.google.errors import VENDOR_ERRORS, translated
from core.clock import Clock, utc_now
from core.errors import Unavailable
from core.records import Annotation, Claim, Record, RecordError, RecordKey, Status

log = structlog.get_logger(__name__)

T = TypeVar("T")
Step = Callable[[Record, datetime], Record | None]

PART = "record store"
# Seconds: for one request, for one that may be repeated with all its repetitions, for a
# transaction with all its attempts, and for a rollback, which nobody waits for.
REQUEST, PATIENCE, TRANSACTION, ROLLBACK = 3.0, 3.0, 8.0, 3.0
ATTEMPTS = 12  # of a transaction that others keep aborting
FIRST_PAUSE, LAST_PAUSE = 0.01, 0.5  # seconds between them, at random up to a doubling limit
# Lookups and queries change nothing and may be repeated.
_RETRY = AsyncRetry(
    predicate=if_exception_type(InternalServerError, ServiceUnavailable),
    initial=0.05,
    maximum=0.5,
    multiplier=2.0,
    timeout=2.0,
)
_RawMutation, _RawReadOptions, _RawQuery = Mutation.pb(), ReadOptions.pb(), Query.pb()


class DatastoreRecordStore:
    """`core.ports.RecordStore` on one database."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        project: str,
        database: str = "",
        namespace_prefix: str = "",
        clock: Clock = utc_now,
    ) -> None:
        self._client = DatastoreAsyncClient(
            transport=DatastoreGrpcAsyncIOTransport(channel=channel)
        )
        self._keys = Keys(project, database, namespace_prefix)
        self._where = {"project_id": project, "database_id": database}
        self._clock = clock
        self._registered: set[str] = set()
        self._registering = asyncio.Lock()
        self._rollbacks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def get(self, key: RecordKey) -> Record | None:
        with translated(PART):
            self._check_open()
            return self._found(await self._lookup(self._keys.record(key), retry=_RETRY))

    async def create(self, record: Record) -> bool:
        entity = entity_of(record, self._keys.record(record.key))

        async def insert() -> bool:
            if record.key.tenant not in self._registered:
                await self._register(record.key.tenant)
            try:
                await self._commit([_RawMutation(insert=entity)])
            except AlreadyExists:
                return False
            return True

        return await self._persistently(insert)

    async def advance(self, key: RecordKey, from_: Status, to: Status) -> bool:
        step: Step = lambda record, now: records.advanced(record, from_, to, now)  # noqa: E731
        return await self._apply(key, step) is not None

    async def claim(self, key: RecordKey, lease: timedelta) -> Claim | None:
        step: Step = lambda record, now: records.claimed(record, now, lease)  # noqa: E731
        record = await self._apply(key, step)
        return None if record is None else records.claim_of(record)

    async def complete(self, claim: Claim, annotations: Sequence[Annotation]) -> bool:
        step: Step = lambda record, now: records.completed(record, claim, annotations, now)  # noqa: E731
        return await self._apply(claim.key, step) is not None

    async def fail(self, claim_or_key: Claim | RecordKey, error: RecordError) -> bool:
        claim = claim_or_key if isinstance(claim_or_key, Claim) else None
        key = claim_or_key.key if isinstance(claim_or_key, Claim) else claim_or_key
        step: Step = lambda record, now: records.failed(record, claim, error, now)  # noqa: E731
        return await self._apply(key, step) is not None

    async def release(self, claim: Claim) -> bool:
        step: Step = lambda record, now: records.released(record, claim, now)  # noqa: E731
        return await self._apply(claim.key, step) is not None

    async def retry(self, key: RecordKey) -> bool:
        return await self._apply(key, records.retried) is not None

    async def touch(self, key: RecordKey, before: datetime) -> bool:
        step: Step = lambda record, now: records.touched(record, before, now)  # noqa: E731
        return await self._apply(key, step) is not None

    async def stale(self, before: datetime, limit: int) -> list[Record]:
        """As the port says; one query for each tenant, since queries stay inside a namespace."""
        found: list[Record] = []
        with translated(PART):
            self._check_open()
            for tenant in await self._tenants():
                query = _RawQuery(kind=[{"name": RECORD_KIND}], limit={"value": limit})
                query.filter.CopyFrom(
                    _filter(UNFINISHED, PropertyFilter.Operator.LESS_THAN, time_value(before))
                )
                query.order.add(
                    property={"name": UNFINISHED}, direction=PropertyOrder.Direction.ASCENDING
                )
                entities = await self._query(self._keys.namespace(tenant), query, retry=_RETRY)
                found += [record_of(entity, self._keys) for entity in entities]
        return nsmallest(limit, found, key=lambda record: record.updated_at)

    async def delete_image(self, tenant: str, image_hash: str) -> int:
        query = _RawQuery(kind=[{"name": RECORD_KIND}], projection=[_KEY_ONLY])
        ancestor = RawValue(key_value=self._keys.image(tenant, image_hash))
        query.filter.CopyFrom(_filter("__key__", PropertyFilter.Operator.HAS_ANCESTOR, ancestor))

        async def delete(transaction: bytes) -> tuple[int, list[Any]]:
            entities = await self._query(self._keys.namespace(tenant), query, _inside(transaction))
            return len(entities), [_RawMutation(delete=entity.key) for entity in entities]

        return await self._transact(delete)

    async def ping(self) -> None:
        with translated(PART):
            self._check_open()
            await self._lookup(self._keys.path("", ("Ping", "ping")))

    async def close(self) -> None:
        """Let go of the locks that refused transactions still hold."""
        self._closed = True
        if self._rollbacks:
            await asyncio.wait(self._rollbacks)

    async def _apply(self, key: RecordKey, step: Step) -> Record | None:
        """Read, decide and write in one transaction; None where refused or unknown."""
        raw_key = self._keys.record(key)

        async def transition(transaction: bytes) -> tuple[Record | None, list[Any]]:
            before = self._found(await self._lookup(raw_key, _inside(transaction)))
            after = None if before is None else step(before, self._clock())
            if after is None:
                return None, []
            # Not an upsert: what was deleted meanwhile stays deleted.
            return after, [_RawMutation(update=entity_of(after, raw_key))]

        return await self._transact(transition)

    async def _transact(self, work: Callable[[bytes], Awaitable[tuple[T, list[Any]]]]) -> T:
        """What `work` returns, once the changes that it wants are made.

        Begun by a request of its own, though a read can begin a transaction: the Firestore emulator
        then locks the record against its own reader.
        """

        async def attempt() -> T:
            transaction = await self._begin()
            committed = False
            try:
                result, mutations = await work(transaction)
                if mutations:
                    await self._commit(mutations, transaction)
                    committed = True
                return result
            finally:
                if not committed:
                    self._roll_back_later(transaction)

        return await self._persistently(attempt)

    async def _persistently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` until nobody else's transaction aborts it. Raises Unavailable."""
        with translated(PART):
            self._check_open()
            async with asyncio.timeout(TRANSACTION):
                for attempt in range(ATTEMPTS):
                    try:
                        return await work()
                    except Aborted:
                        pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0**attempt)
                        await asyncio.sleep(random.uniform(0, pause))
                return await work()

    async def _begin(self) -> bytes:
        raw = BeginTransactionRequest.pb()(**self._where, transaction_options={"read_write": {}})
        response = await self._client.begin_transaction(
            request=BeginTransactionRequest.wrap(raw), retry=None, timeout=REQUEST
        )
        return response.transaction

    async def _lookup(self, key: Any, options: Any = None, retry: AsyncRetry | None = None) -> Any:
        raw = LookupRequest.pb()(**self._where, keys=[key], read_options=options)
        response = await self._client.lookup(
            request=LookupRequest.wrap(raw), retry=retry, timeout=REQUEST
        )
        return LookupResponse.pb(response)

    def _found(self, response: Any) -> Record | None:
        if response.deferred:  # the server did not get round to the one key there is
            raise Unavailable(f"The {PART} does not answer.")
        return record_of(response.found[0].entity, self._keys) if response.found else None

    async def _commit(self, mutations: list[Any], transaction: bytes = b"") -> Any:
        mode = CommitRequest.Mode
        raw = CommitRequest.pb()(
            **self._where,
            mode=mode.TRANSACTIONAL if transaction else mode.NON_TRANSACTIONAL,
            mutations=mutations,
        )
        if transaction:
            raw.transaction = transaction
        response = await self._client.commit(
            request=CommitRequest.wrap(raw), retry=None, timeout=REQUEST
        )
        return CommitResponse.pb(response)

    async def _query(
        self, namespace: str, query: Any, options: Any = None, retry: AsyncRetry | None = None
    ) -> list[Any]:
        """Every entity that `query` finds, over as many answers as it takes."""
        entities: list[Any] = []
        while True:
            raw = RunQueryRequest.pb()(
                **self._where,
                partition_id=self._keys.partition(namespace),
                query=query,
                read_options=options,
            )
            response = await self._client.run_query(
                request=RunQueryRequest.wrap(raw), retry=retry, timeout=REQUEST
            )
            batch = RunQueryResponse.pb(response).batch
            entities += [result.entity for result in batch.entity_results]
            if batch.more_results != QueryResultBatch.MoreResultsType.NOT_FINISHED:
                return entities
            query.start_cursor = batch.end_cursor
            if query.HasField("limit"):
                query.limit.value -= len(batch.entity_results)

    async def _register(self, tenant: str) -> None:
        """Note that the tenant exists, before its first record does, so that `stale` finds it."""
        async with self._registering:
            if tenant in self._registered:
                return
            key = self._keys.tenant(tenant)
            if not (await self._lookup(key, retry=_RETRY)).found:
                await self._commit([_RawMutation(upsert=RawEntity(key=key))])
            self._registered.add(tenant)

    async def _tenants(self) -> list[str]:
        """Every tenant that ever had a record.

        Not Datastore's own query for namespaces, which the Firestore emulator does not have.
        """
        query = _RawQuery(kind=[{"name": TENANT_KIND}], projection=[_KEY_ONLY])
        entities = await self._query(self._keys.tenants_namespace, query, retry=_RETRY)
        return [entity.key.path[0].name for entity in entities]

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"The {PART} is closed.")

    def _roll_back_later(self, transaction: bytes) -> None:
        """Give a transaction's locks up, without anybody waiting for it."""
        task = asyncio.create_task(self._roll_back(transaction))
        self._rollbacks.add(task)
        task.add_done_callback(self._rollbacks.discard)

    async def _roll_back(self, transaction: bytes) -> None:
        raw = RollbackRequest.pb()(**self._where, transaction=transaction)
        try:
            await self._client.rollback(
                request=RollbackRequest.wrap(raw), retry=None, timeout=ROLLBACK
            )
        except VENDOR_ERRORS as error:
            # It has ended by itself, or will.
            log.debug("rollback failed", reason=type(error).__name__)


_KEY_ONLY = {"property": {"name": "__key__"}}


def _inside(transaction: bytes) -> Any:
    """Read as of this transaction, and lock or watch what was read."""
    return _RawReadOptions(transaction=transaction)


def _filter(name: str, operator: int, value: Any) -> Any:
    return Filter.pb()(
        property_filter=PropertyFilter.pb()(property={"name": name}, op=operator, value=value)
    )
