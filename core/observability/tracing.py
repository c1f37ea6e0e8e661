"""Where we are in a trace: W3C trace context for every request, and spans where traces are on.

https://www.w3.org/TR/trace-context/. The rest of Glimpse opens spans by `span` and never asks
whether anything records them: with `TRACES=off` a span is one object that does nothing, and only
the context travels, into log lines and messages. `core.observability.trace_export` has the spans
that record.
"""

import asyncio
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from enum import StrEnum
from types import TracebackType
from typing import ClassVar, NamedTuple, Protocol, Self

Value = str | int | float | bool
Attributes = Mapping[str, Value]

# A version above 00 may have more behind the flags; what we read and send is version 00.
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)


class Kind(StrEnum):
    """What a span is to its neighbours: https://opentelemetry.io/docs/specs/otel/trace/api/"""

    INTERNAL = "internal"
    SERVER = "server"
    PRODUCER = "producer"
    CONSUMER = "consumer"


def new_traceparent() -> str:
    """The context of a new trace that nobody records."""
    # Unique is enough: these ids are no secret, and every request draws one.
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-00"


def parsed_traceparent(text: str) -> str:
    """`text` as version 00, or nothing where it is no trace context."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or (match[1] == "00" and match[3] is not None):
        return ""
    return f"00-{match[2]}"


def trace_id(traceparent: str) -> str:
    return traceparent[3:35]


def span_id(traceparent: str) -> str:
    return traceparent[36:52]


def is_sampled(traceparent: str) -> bool:
    """Whether the one who sent this context may have recorded it."""
    return bool(int(traceparent[53:55] or "0", 16) & 1)


class Step(NamedTuple):
    """What another process did, in Unix nanoseconds, and for how many images at once."""

    name: str
    began: int
    ended: int
    images: int = 1


class Span:
    """A span that nothing records: a place in a trace, and all its children.

    Use `with`; inside, `traceparent` is what others continue.
    """

    __slots__ = ("traceparent",)
    recording: ClassVar[bool] = False

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def child(self, name: str, kind: Kind) -> "AbstractContextManager[Span]":
        """A step inside this span."""
        return self

    def new_trace(self, name: str) -> "AbstractContextManager[Span]":
        """A span that begins a trace of its own and is linked to this one."""
        return Inside(Span(new_traceparent()))

    def past(self, step: Step) -> None:
        """Add a child that is over."""

    def rename(self, name: str) -> None:
        """For what is known better at the end than at the beginning."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes: see https://opentelemetry.io/docs/specs/semconv/ for names."""

    def fail(self, reason: str) -> None:
        """Mark what the span stands for as failed. `reason` is a word, never data."""

    def end(self) -> None:
        """For a span that was begun by `Tracer.begin`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class Stopwatch(Span):
    """A span of a process that exports none: it notes its children, for another to record."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        super().__init__("")
        self.steps: list[Step] = []

    @contextmanager
    def _timed(self, name: str) -> Iterator[Span]:
        began = time.time_ns()
        try:
            yield self
        finally:
            self.steps.append(Step(name, began, time.time_ns()))

    def child(self, name: str, kind: Kind) -> AbstractContextManager[Span]:
        return self._timed(name)


class Tracer(Protocol):
    """Begins the first span of this process in a trace."""

    def begin(self, name: str, kind: Kind, traceparent: str, *, link: str = "") -> Span:
        """Continue `traceparent`, or begin a trace where it is empty.

        `link` is the context of another span that has to do with this one, or empty. Whoever begins
        the span ends it.
        """
        ...

    def close(self, seconds: float) -> None:
        """Send what waits, for at most about `seconds`. Blocks."""
        ...


class NoTracer:
    """`TRACES=off`: contexts are continued and nothing is recorded."""

    def begin(self, name: str, kind: Kind, traceparent: str, *, link: str = "") -> Span:
        return Span(traceparent or new_traceparent())

    def close(self, seconds: float) -> None:
        return


NO_TRACER = NoTracer()
NOWHERE = Span("")
_current: ContextVar[Span] = ContextVar("glimpse_span", default=NOWHERE)


def current() -> Span:
    """The innermost span around the caller, in its task or any that led to it."""
    return _current.get()


def make_current(span: Span) -> None:
    """From here to the end of the task, or to the next call, `span` is the current one.

    It stays so after its end: a request's closing line, and what a request leaves to be done after
    its answer, still belong to it.
    """
    _current.set(span)


def span(name: str, kind: Kind = Kind.INTERNAL) -> AbstractContextManager[Span]:
    """A step inside the current span; the current one itself where nothing is recorded."""
    return _current.get().child(name, kind)


class Inside:
    """`with`: the span is the current one inside, fails by what is raised, ends on the way out."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token: Token[Span] = _current.set(self._span)
        return self._span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What is cancelled was not needed any more.
        if kind is not None and not issubclass(kind, asyncio.CancelledError):
            # The kind of the error and not its words: those may quote what nobody should read.
            self._span.fail(kind.__name__)
        self._span.end()
        _current.reset(self._token)
