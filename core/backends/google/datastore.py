"""Datastore as its stores use it: look up, query, and transactions that run until they are through.

Right under both ways in which Datastore settles conflicts: optimistic, where the later commit is
aborted, and pessimistic, where readers of one entity wait for each other. Every aborted
transaction is run again, from its read.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

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
    Query,
    QueryResultBatch,
    ReadOptions,
    RollbackRequest,
    RunQueryRequest,
    RunQueryResponse,
)

from core.backends.google.entities import TENANT_KIND, Keys, RawEntity
from core.backends.google.errors import VENDOR_ERRORS, translated
from core.errors import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Seconds: for one request, for a transaction with all its attempts, and for a rollback, which
# nobody waits for.
REQUEST, TRANSACTION, ROLLBACK = 3.0, 8.0, 3.0
A_MUTATION = 0.01  # more for each that is committed together with others
ATTEMPTS = 12  # of a transaction that others keep aborting
# Of a lookup, and of a commit: https://cloud.google.com/datastore/docs/concepts/limits
MOST_KEYS, MOST_MUTATIONS = 1000, 500
INSERTS = 200  # in a commit, so that it takes no longer than a request may
FIRST_PAUSE, LAST_PAUSE = 0.01, 0.5  # seconds between them, at random up to a doubling limit
# Lookups and queries change nothing and may be repeated.
RETRY = AsyncRetry(
    predicate=if_exception_type(InternalServerError, ServiceUnavailable),
    initial=0.05,
    maximum=0.5,
    multiplier=2.0,
    timeout=2.0,
)
RawMutation, RawQuery = Mutation.pb(), Query.pb()
_RawReadOptions = ReadOptions.pb()
KEY_ONLY = {"property": {"name": "__key__"}}


class Datastore:
    """One database, for one store or a few. Use with `async with`; the channel stays open.

    `part` is what callers know these stores by in an error. `database` is empty for the default.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        project: str,
        part: str,
        *,
        database: str = "",
        namespace_prefix: str = "",
    ) -> None:
        self.keys = Keys(project, database, namespace_prefix)
        self.part = part
        self._client = DatastoreAsyncClient(
            transport=DatastoreGrpcAsyncIOTransport(channel=channel)
        )
        self._where = {"project_id": project, "database_id": database}
        self._registered: set[str] = set()
        self._registering = asyncio.Lock()
        self._rollbacks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of the locks that refused transactions still hold."""
        self._closed = True
        if self._rollbacks:
            await asyncio.wait(self._rollbacks)

    async def find(self, key: Any) -> Any | None:
        """The entity under `key`, or None. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            return self._found(await self._lookup([key], retry=RETRY))

    async def find_many(self, keys: Sequence[Any]) -> list[Any]:
        """Those entities under `keys` that are there, in no order. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            return await self._lookup_all(keys, retry=RETRY)

    async def find_in(self, key: Any, transaction: bytes) -> Any | None:
        """As `find`, inside of a transaction of `transact`."""
        return self._found(await self._lookup([key], _inside(transaction)))

    async def find_many_in(self, keys: Sequence[Any], transaction: bytes) -> list[Any]:
        """As `find_many`, inside of a transaction of `transact`."""
        return await self._lookup_all(keys, _inside(transaction))

    async def insert(self, entity: Any, tenant: str) -> bool:
        """Store a new entity of `tenant`; False where its key exists. Raises Unavailable."""

        async def insert() -> bool:
            if tenant not in self._registered:
                await self._register(tenant)
            try:
                await self._commit([RawMutation(insert=entity)])
            except AlreadyExists:
                return False
            return True

        return await self._persistently(insert)

    async def register(self, tenant: str) -> None:
        """See that `tenants` has the tenant; a process asks once. Raises Unavailable."""
        if tenant not in self._registered:

            async def register() -> None:
                await self._register(tenant)

            await self._persistently(register)

    async def insert_together(self, entities: Sequence[Any]) -> bool:
        """Store new entities, all of them or, where a key exists, none: False. Raises Unavailable.

        Reads nothing, and so locks nothing that others read.
        """

        async def insert() -> bool:
            transaction = await self._begin()
            try:
                await self._commit([RawMutation(insert=entity) for entity in entities], transaction)
            except BaseException as error:
                self._roll_back_later(transaction)
                if isinstance(error, AlreadyExists):
                    return False
                raise
            return True

        return await self._persistently(insert)

    async def insert_missing(self, entities: Sequence[Any]) -> None:
        """Store those whose key is not there yet, of a tenant that is known. Raises Unavailable.

        Not all at once: some may be there before others, or alone where it raises. What is there
        must stay there meanwhile.
        """
        for begin in range(0, len(entities), INSERTS):
            missing = list(entities[begin : begin + INSERTS])
            while missing and not await self._insert_all(missing):
                there = {_path(each) for each in await self.find_many([e.key for e in missing])}
                missing = [entity for entity in missing if _path(entity) not in there]

    async def delete(self, keys: Sequence[Any]) -> None:
        """Delete the entities that are there. Raises Unavailable."""

        async def delete() -> None:
            await self._commit([RawMutation(delete=key) for key in keys])

        await self._persistently(delete)

    async def query(self, tenant: str, query: Any) -> list[Any]:
        """Every entity of the tenant that `query` finds. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            return await self._query(self.keys.namespace(tenant), query, retry=RETRY)

    async def query_in(self, tenant: str, query: Any, transaction: bytes) -> list[Any]:
        """As `query`, inside of a transaction of `transact`."""
        return await self._query(self.keys.namespace(tenant), query, _inside(transaction))

    async def tenants(self) -> list[str]:
        """Every tenant that ever had an entity.

        Not Datastore's own query for namespaces, which the Firestore emulator does not have.
        """
        query = RawQuery(kind=[{"name": TENANT_KIND}], projection=[KEY_ONLY])
        with translated(self.part):
            self._check_open()
            entities = await self._query(self.keys.tenants_namespace, query, retry=RETRY)
        return [entity.key.path[0].name for entity in entities]

    async def transact(self, work: Callable[[bytes], Awaitable[tuple[T, Sequence[Any]]]]) -> T:
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

    async def ping(self) -> None:
        with translated(self.part):
            self._check_open()
            await self._lookup([self.keys.path("", ("Ping", "ping"))])

    async def _persistently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` until nobody else's transaction aborts it. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            async with asyncio.timeout(TRANSACTION):
                for attempt in range(ATTEMPTS):
                    try:
                        return await work()
                    except Aborted:
                        pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0**attempt)
                        await asyncio.sleep(random.uniform(0, pause))
                return await work()

    async def _insert_all(self, entities: Sequence[Any]) -> bool:
        """False where one was there: then any of the others may be there now, or not."""

        async def insert() -> bool:
            try:
                await self._commit([RawMutation(insert=entity) for entity in entities])
            except AlreadyExists:
                return False
            return True

        return await self._persistently(insert)

    async def _begin(self) -> bytes:
        raw = BeginTransactionRequest.pb()(**self._where, transaction_options={"read_write": {}})
        response = await self._client.begin_transaction(
            request=BeginTransactionRequest.wrap(raw), retry=None, timeout=REQUEST
        )
        return response.transaction

    async def _lookup(
        self, keys: Sequence[Any], options: Any = None, retry: AsyncRetry | None = None
    ) -> Any:
        raw = LookupRequest.pb()(**self._where, keys=keys, read_options=options)
        response = await self._client.lookup(
            request=LookupRequest.wrap(raw), retry=retry, timeout=REQUEST
        )
        return LookupResponse.pb(response)

    async def _lookup_all(
        self, keys: Sequence[Any], options: Any = None, retry: AsyncRetry | None = None
    ) -> list[Any]:
        """Those that are there, over as many answers as it takes."""
        entities: list[Any] = []
        rest = list(keys)
        while rest:
            response = await self._lookup(rest[:MOST_KEYS], options, retry)
            if not (response.found or response.missing):  # or we might ask for ever
                raise Unavailable(f"The {self.part} does not answer.")
            entities += [result.entity for result in response.found]
            rest = [*response.deferred, *rest[MOST_KEYS:]]
        return entities

    def _found(self, response: Any) -> Any | None:
        if response.deferred:  # the server did not get round to the one key there is
            raise Unavailable(f"The {self.part} does not answer.")
        return response.found[0].entity if response.found else None

    async def _commit(self, mutations: Sequence[Any], transaction: bytes = b"") -> Any:
        mode = CommitRequest.Mode
        raw = CommitRequest.pb()(
            **self._where,
            mode=mode.TRANSACTIONAL if transaction else mode.NON_TRANSACTIONAL,
            mutations=mutations,
        )
        if transaction:
            raw.transaction = transaction
        patience = REQUEST + A_MUTATION * len(mutations)
        response = await self._client.commit(
            request=CommitRequest.wrap(raw), retry=None, timeout=patience
        )
        return CommitResponse.pb(response)

    async def _query(
        self, namespace: str, query: Any, options: Any = None, retry: AsyncRetry | None = None
    ) -> list[Any]:
        """Every entity that `query` finds, over as many answers as it takes."""
        entities: list[Any] = []
        rest = RawQuery()
        rest.CopyFrom(query)  # a transaction that runs again asks its whole question again
        while True:
            raw = RunQueryRequest.pb()(
                **self._where,
                partition_id=self.keys.partition(namespace),
                query=rest,
                read_options=options,
            )
            response = await self._client.run_query(
                request=RunQueryRequest.wrap(raw), retry=retry, timeout=REQUEST
            )
            batch = RunQueryResponse.pb(response).batch
            entities += [result.entity for result in batch.entity_results]
            if batch.more_results != QueryResultBatch.MoreResultsType.NOT_FINISHED:
                return entities
            rest.start_cursor = batch.end_cursor
            if rest.HasField("limit"):
                rest.limit.value -= len(batch.entity_results)

    async def _register(self, tenant: str) -> None:
        """Note that the tenant exists, before its first entity does, so that `tenants` has it."""
        async with self._registering:
            if tenant in self._registered:
                return
            key = self.keys.tenant(tenant)
            if not (await self._lookup([key], retry=RETRY)).found:
                await self._commit([RawMutation(upsert=RawEntity(key=key))])
            self._registered.add(tenant)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(f"The {self.part} is closed.")

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


def property_filter(name: str, operator: int, value: Any) -> Any:
    return Filter.pb()(
        property_filter=PropertyFilter.pb()(property={"name": name}, op=operator, value=value)
    )


def _path(entity: Any) -> tuple[tuple[str, str], ...]:
    """What tells an entity from all others of its tenant."""
    return tuple((element.kind, element.name) for element in entity.key.path)


def _inside(transaction: bytes) -> Any:
    """Read as of this transaction, and lock or watch what was read."""
    return _RawReadOptions(transaction=transaction)
