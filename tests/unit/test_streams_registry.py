"""The limits of open streams, and their shutdown."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from app.metrics import StreamMetrics
from app.streams.registry import StreamRegistry
from core.errors import Overloaded, RateLimited, Unavailable


class Stream:
    def __init__(self) -> None:
        self.finished = asyncio.Event()

    def finish(self) -> None:
        self.finished.set()


def registry(max_streams: int = 2, seconds: float = 3600) -> StreamRegistry:
    return StreamRegistry(max_streams, seconds, StreamMetrics(CollectorRegistry()))


async def test_finished_stream_frees_its_place() -> None:
    streams = registry()
    with streams.reserve("sse"), streams.reserve("websocket"):
        with pytest.raises(Overloaded), streams.reserve("sse"):
            pass
        assert len(streams) == 2
    with streams.reserve("sse"), streams.reserve("sse"):
        pass
    assert len(streams) == 0


async def test_key_has_at_most_a_quarter_of_the_streams() -> None:
    streams = registry(max_streams=8)
    with streams.reserve("sse", "one"), streams.reserve("websocket", "one"):
        with pytest.raises(RateLimited), streams.reserve("sse", "one"):
            pass
        with streams.reserve("sse", "other"), streams.reserve("sse"), streams.reserve("sse"):
            assert len(streams) == 5
    with streams.reserve("sse", "one"):
        pass


async def test_stream_finishes_after_its_longest_duration() -> None:
    streams, stream = registry(seconds=0.05), Stream()
    with streams.track(stream):
        async with asyncio.timeout(10):
            await stream.finished.wait()


async def test_stop_finishes_open_streams_and_those_about_to_open() -> None:
    streams, early, late = registry(), Stream(), Stream()
    with streams.track(early), streams.reserve("sse"):
        streams.stop()
        assert early.finished.is_set()
        with streams.track(late):  # it reserved its place before
            assert late.finished.is_set()
    with pytest.raises(Unavailable), streams.reserve("sse"):
        pass
