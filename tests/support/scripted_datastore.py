"""A Datastore in memory that counts requests, for responses that the emulators never send.

https://cloud.google.com/datastore/docs/reference/data/rpc/google.datastore.v1
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.cloud.datastore_v1.types import (
    BeginTransactionRequest,
    BeginTransactionResponse,
    CommitRequest,
    CommitResponse,
    LookupRequest,
    LookupResponse,
    QueryResultBatch,
    RollbackRequest,
    RollbackResponse,
    RunQueryRequest,
    RunQueryResponse,
)

from core.backends.google.datastore import Datastore

PROJECT = "demo-glimpse"


class ScriptedDatastore:
    """Stores entities by key, without locks. Tests override the responses that they script.

    `calls` counts requests by name. `rolled_back` has the transactions that were rolled back.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.entities: dict[bytes, Any] = {}
        self.rolled_back: list[bytes] = []
        self._begun = 0

    async def received(self, name: str, context: Any) -> None:
        """Called with each request before its response. It may abort the request."""

    async def lookup(self, request: Any, context: Any) -> Any:
        response = LookupResponse.pb()()
        for key in request.keys:
            entity = self.entities.get(key.SerializeToString(deterministic=True))
            if entity is None:
                response.missing.add(entity={"key": key})
            else:
                response.found.add(entity=entity)
        return response

    async def run_query(self, request: Any, context: Any) -> Any:
        """The entities that `found_by` returns, in one batch."""
        response = RunQueryResponse.pb()()
        for entity in self.found_by(request.query):
            response.batch.entity_results.add(entity=entity)
        response.batch.more_results = QueryResultBatch.MoreResultsType.NO_MORE_RESULTS
        return response

    def found_by(self, query: Any) -> Sequence[Any]:
        raise NotImplementedError

    async def begin_transaction(self, request: Any, context: Any) -> Any:
        self._begun += 1
        return BeginTransactionResponse.pb()(transaction=b"%d" % self._begun)

    async def commit(self, request: Any, context: Any) -> Any:
        for mutation in request.mutations:
            operation = mutation.WhichOneof("operation")
            if operation == "delete":
                self.entities.pop(mutation.delete.SerializeToString(deterministic=True), None)
                continue
            entity = getattr(mutation, operation)
            key = entity.key.SerializeToString(deterministic=True)
            if operation == "insert" and key in self.entities:
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, "the entity exists")
            if operation == "update" and key not in self.entities:
                await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such entity")
            self.entities[key] = entity
        return CommitResponse.pb()()

    async def rollback(self, request: Any, context: Any) -> Any:
        self.rolled_back.append(request.transaction)
        return RollbackResponse.pb()()


Handler = Callable[[Any, Any], Awaitable[Any]]


@asynccontextmanager
async def served(
    scripted: ScriptedDatastore, part: str = "record store"
) -> AsyncIterator[Datastore]:
    """A client of `scripted`, over gRPC."""
    async with (
        serving(scripted) as address,
        grpc.aio.insecure_channel(address) as channel,
        Datastore(channel, PROJECT, part) as database,
    ):
        yield database


@asynccontextmanager
async def serving(scripted: ScriptedDatastore) -> AsyncIterator[str]:
    """The address of a server of `scripted`, as host:port."""
    requests: dict[str, tuple[Any, Handler]] = {
        "Lookup": (LookupRequest, scripted.lookup),
        "RunQuery": (RunQueryRequest, scripted.run_query),
        "BeginTransaction": (BeginTransactionRequest, scripted.begin_transaction),
        "Commit": (CommitRequest, scripted.commit),
        "Rollback": (RollbackRequest, scripted.rollback),
    }

    def handled(name: str, request_type: Any, handler: Handler) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            scripted.calls[name] += 1
            await scripted.received(name, context)
            return await handler(request, context)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request_type.pb().FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    server = grpc.aio.server()
    handlers = {name: handled(name, *each) for name, each in requests.items()}
    service = grpc.method_handlers_generic_handler("google.datastore.v1.Datastore", handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)  # cancels the requests that still wait for a response
