"""How many streams there may be, and their end."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from app.metrics import LiveMetrics
from app.streams.registry import LiveStreams
from core.errors import Overloaded, Unavailable


class Stream:
    def __init__(self) -> None:
        self.finished = asyncio.Event()

    def finish(self) -> None:
        self.finished.set()


def streams(most: int = 2, seconds: float = 3600) -> LiveStreams:
    return LiveStreams(most, seconds, LiveMetrics(CollectorRegistry()))


async def test_a_place_is_free_again_when_its_stream_is_over() -> None:
    live = streams()
    with live.place("sse"), live.place("websocket"):
        with pytest.raises(Overloaded), live.place("sse"):
            pass
        assert len(live) == 2
    with live.place("sse"), live.place("sse"):
        pass
    assert len(live) == 0


async def test_every_stream_ends_in_time() -> None:
    live, stream = streams(seconds=0.05), Stream()
    with live.running(stream):
        async with asyncio.timeout(10):
            await stream.finished.wait()


async def test_a_stop_finishes_those_that_run_and_those_about_to() -> None:
    live, early, late = streams(), Stream(), Stream()
    with live.running(early), live.place("sse"):
        live.stop()
        assert early.finished.is_set()
        with live.running(late):  # it had its place before
            assert late.finished.is_set()
    with pytest.raises(Unavailable), live.place("sse"):
        pass
