"""Writes each method once for both clients.

A method of a resource, such as `client.keys`, describes its work: it returns a flow, the pages of a
list, or event streams. `blocking`, `paged` and `streamed` make the method of the blocking client,
and the `async_` functions turn that one into the method of the asynchronous client.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from glimpse_client.drivers import AsyncDriver, BlockingDriver
from glimpse_client.flows import Flow
from glimpse_client.types import Page

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# One or more lists. Each function gets a cursor, None for the first page.
Pages = Iterable[Callable[[str | None], Flow[Page[T]]]]


@dataclass(frozen=True, slots=True)
class Stream(Generic[T]):
    """An event stream. `convert` makes an item of a document, or None."""

    path: str
    convert: Callable[[Mapping[str, Any]], T | None]
    params: Mapping[str, Any]


class Resource:
    """A part of the blocking client."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver


class AsyncResource:
    """A part of the asynchronous client."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver


def _documented(method: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator that gives a function what `help` shows of `method`, without the return type."""

    def decorate(call: F) -> F:
        update_wrapper(call, method)
        shown = inspect.signature(method).replace(return_annotation=inspect.Signature.empty)
        call.__signature__ = shown  # type: ignore[attr-defined]  # documented by `inspect`
        return call

    return decorate


def blocking(method: Callable[Concatenate[S, P], Flow[T]]) -> Callable[Concatenate[S, P], T]:
    """A method that returns the result of the flow."""

    @_documented(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._driver.run(method(self, *args, **kwargs))
        return result

    return call


def async_blocking(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The coroutine method for a method that `blocking` has made."""
    flow = inspect.unwrap(method)

    @_documented(flow)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await self._driver.run(flow(self, *args, **kwargs))
        return result

    return call


def paged(
    method: Callable[Concatenate[S, P], Pages[T]],
) -> Callable[Concatenate[S, P], Iterator[T]]:
    """A method that iterates over the items of all pages."""

    @_documented(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        for page_flow in method(self, *args, **kwargs):
            cursor, more = None, True
            while more:
                page = self._driver.run(page_flow(cursor))
                yield from page.items
                cursor = page.next_cursor
                more = cursor is not None

    return call


def async_paged(
    method: Callable[Concatenate[Any, P], Iterator[T]],
) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """The asynchronous iteration for a method that `paged` has made."""
    pages: Callable[..., Any] = inspect.unwrap(method)

    @_documented(pages)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        for page_flow in pages(self, *args, **kwargs):
            cursor, more = None, True
            while more:
                page = await self._driver.run(page_flow(cursor))
                for item in page.items:
                    yield item
                cursor = page.next_cursor
                more = cursor is not None

    return call


def streamed(
    method: Callable[Concatenate[S, P], Iterable[Stream[T]]],
) -> Callable[Concatenate[S, P], Iterator[T]]:
    """A method that iterates over the items of the streams, one stream after the other."""

    @_documented(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        for stream in method(self, *args, **kwargs):
            for document in self._driver.events(stream.path, stream.params):
                item = stream.convert(document)
                if item is not None:
                    yield item

    return call


def async_streamed(
    method: Callable[Concatenate[Any, P], Iterator[T]],
) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """The asynchronous iteration for a method that `streamed` has made."""
    streams: Callable[..., Any] = inspect.unwrap(method)

    @_documented(streams)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        for stream in streams(self, *args, **kwargs):
            async for document in self._driver.events(stream.path, stream.params):
                item = stream.convert(document)
                if item is not None:
                    yield item

    return call
