"""What a call does, step by step, without doing any I/O itself.

A flow is a generator. It yields a request, a sleep or another effect, and is sent its outcome. The
two drivers in `drivers` perform the effects, one blocking and one with asyncio, so that each call
of the client is written once.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from glimpse_client.sources import Source

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be sent, with retries.

    The body is one of `json`, `source` (raw bytes of an image) and `files` (fields of a multipart
    form, each read again for each attempt). A request that is not `idempotent` is repeated only
    if the service has refused it before doing anything. `expect` has statuses that are no errors.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    source: Source | None = None
    files: Sequence["FormFile"] = ()
    idempotent: bool = True
    expect: frozenset[int] = frozenset()
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class FormFile:
    """A field of a multipart form."""

    field: str
    name: str
    source: Source
    content_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that was read to its end. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    document: Any = None


@dataclass(frozen=True, slots=True)
class Call:
    """A blocking function, to be run in a thread that may block."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Follow:
    """Follow the event stream at `path` for at most `seconds`: the last document, or None."""

    path: str
    params: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Several flows at the same time; their results in order. The first error ends the others."""

    flows: Sequence["Flow[Any]"]
    at_once: int = 8


@dataclass(frozen=True, slots=True)
class Clock:
    """The monotonic time, in seconds."""


Effect = Request | Call | Sleep | Follow | Together | Clock
Flow = Generator[Effect, Any, T]


def request(
    method: str, path: str, convert: Callable[[Any], R], **options: Any
) -> Generator[Effect, Any, R]:
    """A flow of one request, whose JSON document becomes the result."""
    response: Response = yield Request(method, path, **options)
    return convert(response.document)


def nothing(_: Any) -> None:
    """For answers without a body."""
    return
