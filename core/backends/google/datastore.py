"""A client of Datastore: lookups, queries, and transactions that are repeated until they commit.

It is correct for both ways in which Datastore handles conflicts: optimistic, where the later commit
aborts, and pessimistic, where readers of one entity wait for each other. A transaction that is
aborted, or that a transient error ends, runs again from its first read. A commit without an answer
may have taken effect: the next attempt looks first for what it would have written.
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
    DeadlineExceeded,
    InternalServerError,
    ServiceUnavailable,
)
from google.api_core.retry import AsyncRetry, if_exception_type
from google.cloud.datastore_v1 import DatastoreAsyncClient
from google.cloud.datastore_v1.services.datastore.transports import DatastoreGrpcAsyncIOTransport
from google.cloud.datastore_v1.types import (
    BeginTransactionRequest,
    CommitRequest,
    LookupRequest,
    LookupResponse,
    Mutation,
    Query,
    QueryResultBatch,
    ReadOptions,
    RollbackRequest,
    RunQueryRequest,
    RunQueryResponse,
)

from core.backends.google.entities import TENANT_KIND, Keys, RawEntity
from core.backends.google.errors import VENDOR_ERRORS, translated
from core.backends.google.queries import query_for
from core.errors import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Timeouts in seconds: for a request, for a transaction with all its attempts, for a rollback, which
# runs in the background.
REQUEST_SECONDS, TRANSACTION_SECONDS, ROLLBACK_SECONDS = 3.0, 8.0, 3.0
MUTATION_SECONDS = 0.01  # added to the timeout of a commit for each mutation
ATTEMPTS = 12  # attempts of a transaction that fails by a conflict or a transient error
# In a lookup, and in a commit: https://cloud.google.com/datastore/docs/concepts/limits
MAX_KEYS, MAX_MUTATIONS = 1000, 500
MAX_INSERTS = 200  # in a commit, so that it takes no longer than a request may
# Seconds between attempts: random, up to a limit that doubles from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.01, 0.5
# For lookups and queries, which change nothing.
RETRY = AsyncRetry(
    predicate=if_exception_type(InternalServerError, ServiceUnavailable),
    initial=0.05,
    maximum=0.5,
    multiplier=2.0,
    timeout=2.0,
)
# After these, an operation is repeated: https://cloud.google.com/datastore/docs/concepts/errors
TRANSIENT = (Aborted, DeadlineExceeded, InternalServerError, ServiceUnavailable)
RawMutation, RawQuery = Mutation.pb(), Query.pb()
_RawReadOptions = ReadOptions.pb()


class Datastore:
    """One database, for a store or a few. Use with `async with`; the channel stays open.

    `part` names the stores in errors. `database` is empty for the default database.
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
        self._database = {"project_id": project, "database_id": database}
        self._registered: set[str] = set()
        self._registering = asyncio.Lock()
        self._rollbacks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for the rollbacks that still run."""
        self._closed = True
        if self._rollbacks:
            await asyncio.wait(self._rollbacks)

    async def find(self, key: Any) -> Any | None:
        """The entity with this key, or None. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            return self._found(await self._lookup([key], retry=RETRY))

    async def find_many(self, keys: Sequence[Any]) -> list[Any]:
        """The entities with these keys that exist, in any order. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            return await self._lookup_all(keys, retry=RETRY)

    async def find_in(self, key: Any, transaction: bytes) -> Any | None:
        """Like `find`, in a transaction of `transact`."""
        return self._found(await self._lookup([key], _inside(transaction)))

    async def find_many_in(self, keys: Sequence[Any], transaction: bytes) -> list[Any]:
        """Like `find_many`, in a transaction of `transact`."""
        return await self._lookup_all(keys, _inside(transaction))

    async def insert(self, entity: Any, tenant: str) -> bool:
        """Insert an entity of `tenant`. Returns False if its key exists. Raises Unavailable."""
        mutations = [RawMutation(insert=entity)]
        sent = False

        async def insert() -> bool:
            nonlocal sent
            if tenant not in self._registered:
                await self._register(tenant)
            repeated, sent = sent, True
            try:
                await self._commit(mutations)
            except AlreadyExists:
                return repeated and await self._applied(mutations)
            return True

        return await self._repeat(insert)

    async def register(self, tenant: str) -> None:
        """Add the tenant to `tenants`, once per process. Raises Unavailable."""
        if tenant not in self._registered:

            async def register() -> None:
                await self._register(tenant)

            await self._repeat(register)

    async def insert_together(self, entities: Sequence[Any]) -> bool:
        """Insert entities in one transaction. Returns False if a key exists. Raises Unavailable.

        It reads nothing, so it locks nothing that others read.
        """
        mutations = [RawMutation(insert=entity) for entity in entities]
        sent = False

        async def insert() -> bool:
            nonlocal sent
            transaction = await self._begin()
            repeated, sent = sent, True
            try:
                await self._commit(mutations, transaction)
            except BaseException as error:
                self._roll_back_later(transaction)
                if isinstance(error, AlreadyExists):
                    return repeated and await self._applied(mutations)
                raise
            return True

        return await self._repeat(insert)

    async def insert_missing(self, entities: Sequence[Any]) -> None:
        """Insert the entities whose key does not exist, of a registered tenant.

        Not in one transaction: if it raises Unavailable, some may be inserted. Entities that
        exist must not be deleted meanwhile.
        """
        for begin in range(0, len(entities), MAX_INSERTS):
            missing = list(entities[begin : begin + MAX_INSERTS])
            while missing and not await self._insert_all(missing):
                there = {_path(each) for each in await self.find_many([e.key for e in missing])}
                missing = [entity for entity in missing if _path(entity) not in there]

    async def delete(self, keys: Sequence[Any]) -> None:
        """Delete the entities that exist. Raises Unavailable."""

        async def delete() -> None:
            await self._commit([RawMutation(delete=key) for key in keys])

        await self._repeat(delete)

    async def delete_found(self, tenant: str, query: Any, limit: int) -> int:
        """Delete at most `limit` entities that `query`, for keys, finds. Returns how many."""
        deleted = 0
        while deleted < limit:
            query.limit.value = min(limit - deleted, MAX_MUTATIONS)
            keys = [entity.key for entity in await self.query(tenant, query)]
            if not keys:
                break
            await self.delete(keys)
            deleted += len(keys)
        return deleted

    async def query(self, tenant: str, query: Any) -> list[Any]:
        """All entities of the tenant that `query` finds. Raises Unavailable."""
        return await self.query_namespace(self.keys.namespace(tenant), query)

    async def query_namespace(self, namespace: str, query: Any) -> list[Any]:
        """All entities of the namespace that `query` finds. Raises Unavailable."""
        with translated(self.part):
            self._check_open()
            return await self._query(namespace, query, retry=RETRY)

    async def query_in(self, tenant: str, query: Any, transaction: bytes) -> list[Any]:
        """Like `query`, in a transaction of `transact`."""
        return await self._query(self.keys.namespace(tenant), query, _inside(transaction))

    async def tenants(self) -> list[str]:
        """All tenants that ever had an entity. Raises Unavailable.

        Datastore's query for namespaces does not exist in the Firestore emulator.
        """
        query = query_for(TENANT_KIND, keys_only=True)
        with translated(self.part):
            self._check_open()
            entities = await self._query(self.keys.tenants_namespace, query, retry=RETRY)
        return [entity.key.path[0].name for entity in entities]

    async def transact(self, operation: Callable[[bytes], Awaitable[tuple[T, Sequence[Any]]]]) -> T:
        """Run `operation` in a transaction, and commit the mutations that it returns.

        The first part of what it returns is the result. It may run more than once, and must be
        right then too, as a compare-and-set is. Raises Unavailable. A separate request begins the
        transaction: if the first read begins it, the Firestore emulator locks the entity
        against that reader.
        """

        # What each commit without an answer would have written, and its result. Such a commit may
        # take effect as late as during the next attempt, which it then aborts.
        unanswered: list[tuple[T, Sequence[Any]]] = []

        async def attempt() -> T:
            transaction = await self._begin()
            committed = False
            try:
                for result, mutations in unanswered:
                    if await self._applied(mutations, _inside(transaction)):
                        return result
                result, mutations = await operation(transaction)
                if mutations:
                    unanswered.append((result, mutations))
                    try:
                        await self._commit(mutations, transaction)
                    except Aborted:
                        unanswered.pop()  # this one has not taken effect
                        raise
                    committed = True
                return result
            finally:
                if not committed:
                    self._roll_back_later(transaction)

        return await self._repeat(attempt)

    async def _applied(self, mutations: Sequence[Any], options: Any = None) -> bool:
        """Whether the database has exactly what the mutations would write."""
        wanted = {}
        for mutation in mutations:
            operation = mutation.WhichOneof("operation")
            state = getattr(mutation, operation)
            key, state = (state, None) if operation == "delete" else (state.key, state)
            wanted[key.SerializeToString(deterministic=True)] = (key, state)
        found = await self._lookup_all([key for key, _ in wanted.values()], options)
        present = {
            entity.key.SerializeToString(deterministic=True): entity.properties for entity in found
        }
        return all(
            name not in present if state is None else present.get(name) == state.properties
            for name, (_, state) in wanted.items()
        )

    async def ping(self) -> None:
        with translated(self.part):
            self._check_open()
            await self._lookup([self.keys.path("", ("Ping", "ping"))])

    async def _repeat(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation`, and repeat it after conflicts and transient errors.

        Raises Unavailable after `ATTEMPTS` or `TRANSACTION_SECONDS`.
        """
        with translated(self.part):
            self._check_open()
            async with asyncio.timeout(TRANSACTION_SECONDS):
                for attempt in range(ATTEMPTS):
                    try:
                        return await operation()
                    except TRANSIENT:
                        pause = min(LAST_PAUSE, FIRST_PAUSE * 2.0**attempt)
                        await asyncio.sleep(random.uniform(0, pause))
                return await operation()

    async def _insert_all(self, entities: Sequence[Any]) -> bool:
        """Returns False if one exists: then the others may be inserted or not."""

        async def insert() -> bool:
            try:
                await self._commit([RawMutation(insert=entity) for entity in entities])
            except AlreadyExists:
                return False
            return True

        return await self._repeat(insert)

    async def _begin(self) -> bytes:
        raw = BeginTransactionRequest.pb()(**self._database, transaction_options={"read_write": {}})
        response = await self._client.begin_transaction(
            request=BeginTransactionRequest.wrap(raw), retry=None, timeout=REQUEST_SECONDS
        )
        return response.transaction

    async def _lookup(
        self, keys: Sequence[Any], options: Any = None, retry: AsyncRetry | None = None
    ) -> Any:
        raw = LookupRequest.pb()(**self._database, keys=keys, read_options=options)
        response = await self._client.lookup(
            request=LookupRequest.wrap(raw), retry=retry, timeout=REQUEST_SECONDS
        )
        return LookupResponse.pb(response)

    async def _lookup_all(
        self, keys: Sequence[Any], options: Any = None, retry: AsyncRetry | None = None
    ) -> list[Any]:
        """The entities that exist, from as many responses as needed."""
        entities: list[Any] = []
        rest = list(keys)
        while rest:
            response = await self._lookup(rest[:MAX_KEYS], options, retry)
            if not (response.found or response.missing):  # or this loop might not end
                raise Unavailable(f"The {self.part} does not answer.")
            entities += [result.entity for result in response.found]
            rest = [*response.deferred, *rest[MAX_KEYS:]]
        return entities

    def _found(self, response: Any) -> Any | None:
        if response.deferred:  # the server has not looked up the only key
            raise Unavailable(f"The {self.part} does not answer.")
        return response.found[0].entity if response.found else None

    async def _commit(self, mutations: Sequence[Any], transaction: bytes = b"") -> None:
        mode = CommitRequest.Mode
        raw = CommitRequest.pb()(
            **self._database,
            mode=mode.TRANSACTIONAL if transaction else mode.NON_TRANSACTIONAL,
            mutations=mutations,
        )
        if transaction:
            raw.transaction = transaction
        timeout = REQUEST_SECONDS + MUTATION_SECONDS * len(mutations)
        await self._client.commit(request=CommitRequest.wrap(raw), retry=None, timeout=timeout)

    async def _query(
        self, namespace: str, query: Any, options: Any = None, retry: AsyncRetry | None = None
    ) -> list[Any]:
        """All entities that `query` finds, from as many responses as needed."""
        entities: list[Any] = []
        rest = RawQuery()
        rest.CopyFrom(query)  # a transaction that runs again needs the whole query again
        while True:
            raw = RunQueryRequest.pb()(
                **self._database,
                partition_id=self.keys.partition(namespace),
                query=rest,
                read_options=options,
            )
            response = await self._client.run_query(
                request=RunQueryRequest.wrap(raw), retry=retry, timeout=REQUEST_SECONDS
            )
            batch = RunQueryResponse.pb(response).batch
            entities += [result.entity for result in batch.entity_results]
            if batch.more_results != QueryResultBatch.MoreResultsType.NOT_FINISHED:
                return entities
            rest.start_cursor = batch.end_cursor
            if rest.HasField("limit"):
                rest.limit.value -= len(batch.entity_results)

    async def _register(self, tenant: str) -> None:
        """Add the tenant to `tenants`, before its first entity exists."""
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
        """Release the locks of a transaction, in the background."""
        task = asyncio.create_task(self._roll_back(transaction))
        self._rollbacks.add(task)
        task.add_done_callback(self._rollbacks.discard)

    async def _roll_back(self, transaction: bytes) -> None:
        raw = RollbackRequest.pb()(**self._database, transaction=transaction)
        try:
            await self._client.rollback(
                request=RollbackRequest.wrap(raw), retry=None, timeout=ROLLBACK_SECONDS
            )
        except VENDOR_ERRORS as error:
            # Datastore ends the transaction after a timeout.
            log.debug("rollback failed", reason=type(error).__name__)


def _path(entity: Any) -> tuple[tuple[str, str], ...]:
    """Identifies an entity among those of its tenant."""
    return tuple((element.kind, element.name) for element in entity.key.path)


def _inside(transaction: bytes) -> Any:
    """Options of a read in this transaction."""
    return _RawReadOptions(transaction=transaction)
