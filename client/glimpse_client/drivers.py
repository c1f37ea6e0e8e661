"""Perform the effects of flows: `BlockingDriver` with threads, `AsyncDriver` with asyncio."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar, assert_never

import httpx2

from glimpse_client.errors import ApiError, ConnectionFailed, GlimpseError, error_for
from glimpse_client.flows import (
    Call,
    Clock,
    Effect,
    Flow,
    Follow,
    Request,
    Response,
    Sleep,
    Together,
)
from glimpse_client.retries import RetryPolicy, may_repeat, retry_after

log = logging.getLogger("glimpse_client")

T = TypeVar("T")

# The request did not reach the service, so repeating it is always safe.
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
FINAL_EVENTS = frozenset({"complete", "failed", "cancelled", "error"})


def read_response(answer: httpx2.Response) -> Response:
    """A response whose JSON, if it is JSON, is decoded."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    document = None
    if answer.content and "json" in headers.get("content-type", ""):
        try:
            document = json.loads(answer.content)
        except ValueError:
            raise ConnectionFailed("the service answered JSON that is cut off or broken") from None
    return Response(answer.status_code, headers, answer.content, document)


def refusal(response: Response) -> ApiError:
    """The error of a response."""
    problem = response.document if isinstance(response.document, Mapping) else {}
    return error_for(response.status, problem, retry_after(response.headers))


def _check_stream(answer: httpx2.Response) -> None:
    """Raises ConnectionFailed if the body is no event stream, as that of some proxies."""
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise ConnectionFailed(f"the stream has the content type {kind!r}")


class _Attempts:
    """Counts the attempts of one request and decides about the next."""

    def __init__(self, policy: RetryPolicy, wanted: Request) -> None:
        self._policy = policy
        self._wanted = wanted
        self._count = 0

    def after_failure(self, error: httpx2.HTTPError | ConnectionFailed) -> float:
        """Seconds until the next attempt. Raises ConnectionFailed."""
        safe = self._wanted.idempotent or isinstance(error, _NOT_SENT)
        delay = self._next(None) if safe else None
        if delay is None:
            raise ConnectionFailed(
                f"{self._wanted.method} {self._wanted.path}: {error or type(error).__name__}"
            ) from error
        self._note(str(error) or type(error).__name__, delay)
        return delay

    def after_answer(self, response: Response) -> float | None:
        """None if the response is the result, else seconds. Raises ApiError."""
        if response.status < 400 or response.status in self._wanted.expect:
            return None
        error = refusal(response)
        if not may_repeat(response.status, idempotent=self._wanted.idempotent):
            raise error
        delay = self._next(error.retry_after)
        if delay is None:
            raise error
        self._note(str(error), delay)
        return delay

    def _next(self, after: float | None) -> float | None:
        self._count += 1
        return self._policy.delay(self._count, after)

    def _note(self, reason: str, delay: float) -> None:
        log.info(
            "retry %d of %s %s in %.2f s: %s",
            *(self._count, self._wanted.method, self._wanted.path, delay, reason),
        )


def _arguments(wanted: Request, stack: ExitStack) -> dict[str, Any]:
    """What httpx2 needs to send `wanted`; opened files are closed with `stack`."""
    arguments: dict[str, Any] = {
        "params": {name: value for name, value in wanted.params.items() if value is not None},
        "headers": dict(wanted.headers),
    }
    if wanted.timeout is not None:
        arguments["timeout"] = wanted.timeout
    if wanted.json is not None:
        arguments["json"] = wanted.json
    if wanted.files:
        arguments["files"] = [
            (each.field, (each.name, stack.enter_context(each.source.lazy()), each.content_type))
            for each in wanted.files
        ]
    return arguments


class BlockingDriver:
    """Runs flows with a blocking HTTP client. Safe for several threads."""

    def __init__(self, http: httpx2.Client, policy: RetryPolicy) -> None:
        self._http = http
        self._policy = policy

    def run(self, flow: Flow[T]) -> T:
        """The result of `flow`; raises what it raises."""
        outcome: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = flow.send(outcome) if error is None else flow.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome, error = None, None
            try:
                outcome = self._perform(effect)
            except (GlimpseError, OSError) as failed:
                error = failed

    def events(
        self, path: str, params: Mapping[str, Any], seconds: float | None = None
    ) -> Iterator[Any]:
        """The documents of an event stream until its final event; connects again when cut off.

        Raises ApiError, and ConnectionFailed once the retries are used up.
        """
        cursor = _Cursor(seconds)
        attempts = _Attempts(self._policy, Request("GET", path))
        while not cursor.over:
            try:
                with self._http.sse(
                    path, params=cursor.params(params), headers=cursor.headers(), timeout=40.0
                ) as source:
                    if source.response.status_code == 204:
                        return
                    if source.response.status_code >= 400:
                        source.response.read()
                        delay = attempts.after_answer(read_response(source.response)) or 0.0
                    else:
                        _check_stream(source.response)
                        for event in source:
                            attempts = _Attempts(self._policy, Request("GET", path))
                            document = cursor.take(event)
                            if document is not None:
                                yield document
                            if cursor.over:
                                return
                        delay = cursor.pause
            except httpx2.HTTPError as failed:
                delay = attempts.after_failure(failed)
            time.sleep(delay)

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Request():
                return self._send(effect)
            case Call(function):
                return function()
            case Sleep(seconds):
                return time.sleep(seconds)
            case Clock():
                return time.monotonic()
            case Follow(path, params, seconds):
                return self._follow(path, params, seconds)
            case Together(flows, at_once):
                with ThreadPoolExecutor(max_workers=max(1, at_once)) as pool:
                    return list(pool.map(self.run, flows))
            case _:
                assert_never(effect)

    def _send(self, wanted: Request) -> Response:
        attempts = _Attempts(self._policy, wanted)
        while True:
            try:
                with ExitStack() as stack:
                    arguments = _arguments(wanted, stack)
                    if wanted.source is not None:
                        arguments["content"] = stack.enter_context(wanted.source.open())
                    answer = self._http.request(wanted.method, wanted.path, **arguments)
                response = read_response(answer)
                delay = attempts.after_answer(response)
                if delay is None:
                    return response
            except (httpx2.HTTPError, ConnectionFailed) as failed:
                delay = attempts.after_failure(failed)
            time.sleep(delay)

    def _follow(self, path: str, params: Mapping[str, Any], seconds: float) -> Any:
        last = None
        try:
            for document in self.events(path, params, seconds):
                last = document
        except GlimpseError as failed:
            log.info("stream of %s is not available: %s", path, failed)
        return last


class AsyncDriver:
    """Runs flows with asyncio."""

    def __init__(self, http: httpx2.AsyncClient, policy: RetryPolicy) -> None:
        self._http = http
        self._policy = policy

    async def run(self, flow: Flow[T]) -> T:
        """The result of `flow`; raises what it raises."""
        outcome: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = flow.send(outcome) if error is None else flow.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            outcome, error = None, None
            try:
                outcome = await self._perform(effect)
            except (GlimpseError, OSError) as failed:
                error = failed

    async def events(
        self, path: str, params: Mapping[str, Any], seconds: float | None = None
    ) -> AsyncIterator[Any]:
        """As `BlockingDriver.events`."""
        cursor = _Cursor(seconds)
        attempts = _Attempts(self._policy, Request("GET", path))
        while not cursor.over:
            try:
                async with self._http.sse(
                    path, params=cursor.params(params), headers=cursor.headers(), timeout=40.0
                ) as source:
                    if source.response.status_code == 204:
                        return
                    if source.response.status_code >= 400:
                        await source.response.aread()
                        delay = attempts.after_answer(read_response(source.response)) or 0.0
                    else:
                        _check_stream(source.response)
                        async for event in source:
                            attempts = _Attempts(self._policy, Request("GET", path))
                            document = cursor.take(event)
                            if document is not None:
                                yield document
                            if cursor.over:
                                return
                        delay = cursor.pause
            except httpx2.HTTPError as failed:
                delay = attempts.after_failure(failed)
            await asyncio.sleep(delay)

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Request():
                return await self._send(effect)
            case Call(function):
                return await asyncio.to_thread(function)
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Clock():
                return time.monotonic()
            case Follow(path, params, seconds):
                return await self._follow(path, params, seconds)
            case Together(flows, at_once):
                room = asyncio.Semaphore(max(1, at_once))

                async def one(flow: Flow[Any]) -> Any:
                    async with room:
                        return await self.run(flow)

                tasks = [asyncio.ensure_future(one(each)) for each in flows]
                try:
                    return list(await asyncio.gather(*tasks))
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            case _:
                assert_never(effect)

    async def _send(self, wanted: Request) -> Response:
        attempts = _Attempts(self._policy, wanted)
        while True:
            try:
                with ExitStack() as stack:
                    arguments = _arguments(wanted, stack)
                    if wanted.source is not None:
                        arguments["content"] = await asyncio.to_thread(wanted.source.read)
                    answer = await self._http.request(wanted.method, wanted.path, **arguments)
                response = read_response(answer)
                delay = attempts.after_answer(response)
                if delay is None:
                    return response
            except (httpx2.HTTPError, ConnectionFailed) as failed:
                delay = attempts.after_failure(failed)
            await asyncio.sleep(delay)

    async def _follow(self, path: str, params: Mapping[str, Any], seconds: float) -> Any:
        last = None
        try:
            async for document in self.events(path, params, seconds):
                last = document
        except GlimpseError as failed:
            log.info("stream of %s is not available: %s", path, failed)
        return last


class _Cursor:
    """Where a client is in an event stream, over any number of connections."""

    def __init__(self, seconds: float | None) -> None:
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._last_id = ""
        self._finished = False
        self.pause = 1.0  # seconds, as the service's `retry:` says

    @property
    def over(self) -> bool:
        return self._finished or (self._ends is not None and time.monotonic() >= self._ends)

    def headers(self) -> dict[str, str]:
        return {"last-event-id": self._last_id} if self._last_id else {}

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in params.items() if value is not None}

    def take(self, event: httpx2.ServerSentEvent) -> Any:
        """The event's document, or None for what has none."""
        if event.retry is not None:
            self.pause = min(10.0, event.retry / 1000)
        if event.id:
            self._last_id = event.id
        self._finished = event.event in FINAL_EVENTS
        try:
            document = json.loads(event.data)
        except ValueError:
            return None
        return document if isinstance(document, dict) else None
