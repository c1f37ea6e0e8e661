"""`GET /api/v1/images/{hash}/stream` over real connections."""

import asyncio
import itertools
import random
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.streams import events as stream_events
from app.streams import send_timeout, sse
from app.streams.events import Event, Kind
from app.streams.sse import encode
from core.domain.api_keys import revoke
from core.domain.principals import Scope
from core.domain.records import Claim, RecordError, Status, complete, fail, release
from tests.support.api import (
    LABELS,
    LEASE,
    Api,
    api_settings,
    bearer,
    eventually,
    open_api,
    serve_api,
)
from tests.support.event_streams import Received, everything, reading
from tests.support.live_streams import (
    TIMEOUT,
    connected,
    opened,
    polled,
    released,
    sending,
    serve_streams,
    stoppable,
)
from tests.support.metrics import samples, series
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.records import claimed

UNKNOWN = "0" * 64


def path_of(image: bytes) -> str:
    return f"/api/v1/images/{sha256(image)}/stream"


@pytest.fixture
async def served(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with serve_streams(api_settings(tmp_path, colour_bundle)) as api:
        yield api


async def uploaded(api: Api, seed: int = 0) -> bytes:
    image = picture(seed=seed)
    answer = await api.client.post("/api/v1/images", content=image)
    assert answer.status_code == 202
    await api.finish_submissions()
    return image


async def move(api: Api, image: bytes) -> None:
    """Change the record in a way that clients see, without ending it."""
    key = api.key(sha256(image))
    claim = await claimed(api.records, key, LEASE)
    assert claim is not None
    assert await api.records.change(claim.key, release(claim))


async def claimed_images(api: Api, *images: bytes) -> list[Claim]:
    """Claim the records in advance, so that the only change left is their end."""
    claims = [await claimed(api.records, api.key(sha256(image)), LEASE) for image in images]
    return [claim for claim in claims if claim is not None]


async def finish(api: Api, *claims: Claim) -> None:
    for claim in claims:
        assert await api.records.change(claim.key, complete(claim, LABELS))


def check_order(events: list[Received]) -> None:
    ids = [int(event.id) for event in events if event.id]
    assert ids == sorted(set(ids)), ids
    assert [event.event for event in events[:-1]] == ["update"] * (len(events) - 1)


# --- The events of a stream -----------------------------------------------------------------------


async def test_stream_sends_the_state_then_each_change_and_the_result(
    served: Api,
) -> None:
    image = await uploaded(served)
    seen = []
    async with reading(served.client, path_of(image)) as reader:
        assert reader.response.headers["cache-control"] == "no-store"
        assert reader.response.headers["x-accel-buffering"] == "no"
        assert reader.response.headers["x-content-type-options"] == "nosniff"
        events = reader.events()
        seen.append(await anext(events))
        assert seen[0].data["status"] == "queued"
        assert await claimed(served.records, served.key(sha256(image)), LEASE)
        seen.append(await anext(events))
        assert seen[1].data["status"] == "running"
        record = await served.record(sha256(image))
        claim = await claimed(served.records, record.key, LEASE)
        assert claim is None
        await finish_running(served, image)
        seen += [event async for event in events]  # the server closes it
    check_order(seen)
    assert reader.retry is not None
    assert 1000 <= reader.retry <= 3000
    last = seen[-1]
    assert (last.event, last.data["status"]) == ("complete", "success")
    answer = await served.client.get(f"/api/v1/images/{sha256(image)}")
    assert last.data == answer.json()
    updated = (await served.record(sha256(image))).updated_at
    assert int(last.id) == round(updated.timestamp() * 1_000_000)


async def finish_running(api: Api, image: bytes) -> None:
    """Complete a record whose claim the test did not keep."""
    with closing(sqlite3.connect(api.settings.data_dir / "records.db")) as database:
        database.execute("UPDATE records SET lease_expires_at = 0")
        database.commit()
    await api.succeed(sha256(image))


async def test_failed_image_ends_the_stream_with_failed(served: Api) -> None:
    image = await uploaded(served)
    await served.fail(sha256(image), retryable=False)
    (event,) = await everything(served.client, path_of(image))
    assert (event.event, event.data["error"]["code"]) == ("failed", "undecodable_image")


async def test_deleted_image_ends_the_stream_and_is_not_found_afterwards(served: Api) -> None:
    image = await uploaded(served)
    async with reading(served.client, path_of(image)) as reader:
        events = reader.events()
        await anext(events)
        assert (await served.client.delete(path_of(image).removesuffix("/stream"))).is_success
        (event,) = [event async for event in events]
    assert (event.event, event.data["code"]) == ("failed", "not_found")
    again = await served.client.get(path_of(image), headers={"Last-Event-ID": event.id})
    assert again.status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/api/v1/images/{UNKNOWN}/stream", 404, "not_found"),
        ("/api/v1/images/cat/stream", 422, "invalid_request"),
        (f"/api/v1/images/{UNKNOWN}/stream?model=cat", 422, "unknown_model"),
    ],
)
async def test_stream_of_unknown_or_invalid_image_is_refused(
    served: Api, path: str, status: int, code: str
) -> None:
    answer = await served.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


# --- Reconnecting ---------------------------------------------------------------------------------


async def test_reconnect_repeats_no_event_and_gets_204_after_the_last(
    served: Api, short: Callable[[Any, str, float], None]
) -> None:
    short(stream_events, "HEARTBEAT_SECONDS", 0.1)
    image = await uploaded(served)
    path = path_of(image)
    async with reading(served.client, path) as reader:
        first = await anext(reader.events())
    # By header, and by the parameter of a first request; the header takes precedence.
    for options in (
        {"headers": {"Last-Event-ID": first.id}},
        {"params": {"last_event_id": first.id}},
        {"headers": {"Last-Event-ID": first.id}, "params": {"last_event_id": "1"}},
    ):
        async with served.client.stream("GET", path, **options) as response:  # type: ignore[arg-type]
            assert response.status_code == 200
            text = ""
            async with asyncio.timeout(TIMEOUT):
                async for piece in response.aiter_text():
                    text += piece
                    if text.count(":") >= 8:  # longer than the poller's interval
                        break
        assert set(text.split("\n")) == {"", ":"}  # heartbeats
    await served.succeed(sha256(image))
    (last,) = await everything(served.client, path, first.id)
    assert last.event == "complete"
    for options in (
        {"headers": {"Last-Event-ID": last.id}},
        {"params": {"last_event_id": last.id}},
    ):
        answer = await served.client.get(path, **options)  # type: ignore[arg-type]
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["cache-control"] == "no-store"
    # Any other last id gets the event again, even a higher one from another clock.
    for other in (first.id, str(int(last.id) + 1_000_000), "", "cat", "-1", "9" * 40):
        assert await everything(served.client, path, other) == [last]


async def test_client_with_a_bad_connection_misses_and_repeats_no_event(
    served: Api,
) -> None:
    """Every second connection may break before the client reads its event."""
    image = await uploaded(served)
    draw = random.Random(6)
    seen: list[Received] = []
    last_id = ""

    async def work() -> None:
        for _ in range(8):
            await polled(served.services.image_poller, draw.randrange(1, 4))
            await move(served, image)
        await served.succeed(sha256(image))

    working = asyncio.create_task(work())
    for connection in itertools.count():
        async with reading(served.client, path_of(image), last_id) as reader:
            async for event in reader.events():
                if connection % 2 and draw.random() < 0.5:
                    break  # lost: the client has not read it
                seen.append(event)
                last_id = event.id
                if connection % 2 == 0:
                    break
        if seen and seen[-1].event != "update":
            break
    await working
    check_order(seen)
    assert [event.event for event in seen].count("complete") == 1
    attempts = [event.data["attempts"] for event in seen]
    assert attempts == sorted(attempts)
    assert attempts[-1] == 9
    answer = await served.client.get(path_of(image), headers={"Last-Event-ID": last_id})
    assert answer.status_code == 204


async def test_new_attempt_is_sent_to_a_client_that_has_seen_the_error(served: Api) -> None:
    image = await uploaded(served)
    await served.fail(sha256(image), retryable=True)
    (failed,) = await everything(served.client, path_of(image))
    assert failed.event == "failed"
    assert (await served.client.post("/api/v1/images", content=image)).status_code == 202
    async with reading(served.client, path_of(image), failed.id) as reader:
        events = reader.events()
        assert (await anext(events)).data["status"] in ("pending", "queued")
        await served.succeed(sha256(image))
        rest = [event async for event in events]
    assert rest[-1].event == "complete"


# --- Frequency and cost ---------------------------------------------------------------------------


async def test_updates_are_sent_at_most_twice_a_second_and_the_last_event_immediately(
    served: Api,
) -> None:
    """Other clients connect at the same time, so that the record is looked up far more often."""
    image = await uploaded(served)
    times: list[float] = []

    async def follow() -> Received:
        async with reading(served.client, path_of(image)) as reader:
            async for event in reader.events():
                if event.event != "update":
                    return event
                times.append(time.monotonic())
        raise AssertionError("no end")

    began = time.monotonic()
    following = asyncio.create_task(follow())
    while len(times) < 6:
        await move(served, image)
        async with reading(served.client, path_of(image)) as reader:
            await anext(reader.events())
    await served.succeed(sha256(image))
    async with asyncio.timeout(TIMEOUT):
        last = await following
    assert last.event == "complete"
    # A delay on the way to a client delays later updates at least as much: none may be early.
    early = [n for n, at in enumerate(times) if at < began + 0.5 * n]
    assert not early, [at - began for at in times]


async def test_many_streams_of_many_images_share_each_lookup(served: Api) -> None:
    images = [await uploaded(served, seed) for seed in range(5)]
    claims = await claimed_images(served, *images)
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=200)
        base = served.client.base_url
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=base, limits=limits, timeout=TIMEOUT, verify=NO_TLS)
        )
        readers = [
            await stack.enter_async_context(reading(client, path_of(image)))
            for image in images
            for _ in range(20)
        ]
        streams = [reader.events() for reader in readers]
        await asyncio.gather(*(anext(stream) for stream in streams))
        began = time.monotonic()
        before = await scraped(served)
        assert before[series("glimpse_live_streams", transport="sse")] == 100
        assert len(served.services.image_poller) == 5
        await eventually(lambda: polled_twice(served, before))
        lookups, keys = await lookups_since(served, before)
        assert lookups <= (time.monotonic() - began) / 0.5 + 1
        assert keys == 5 * lookups
        await finish(served, *claims)
        ends = await asyncio.gather(*(rest(stream) for stream in streams))
        assert all([event.event for event in end] == ["complete"] for end in ends)
    await eventually(lambda: released(served))
    seen = await scraped(served)
    assert seen[series("glimpse_live_streams", transport="sse")] == 0
    route = "/api/v1/images/{image_hash}/stream"
    name = "glimpse_http_request_duration_seconds_sum"
    # The duration of a stream is its time to first byte, not the seconds that it stays open.
    assert seen[series(name, method="GET", route=route)] < 100


async def rest(stream: AsyncIterator[Received]) -> list[Received]:
    return [event async for event in stream]


async def scraped(api: Api) -> dict[str, float]:
    return samples((await api.client.get("/metrics")).text)


async def polled_twice(api: Api, before: dict[str, float]) -> bool:
    lookups, _ = await lookups_since(api, before)
    return lookups >= 2


async def lookups_since(api: Api, before: dict[str, float]) -> tuple[float, float]:
    after = await scraped(api)
    names = ("glimpse_live_lookups_total", "glimpse_live_lookup_keys_total")
    lookups, keys = (after[s] - before[s] for s in (series(name, what="images") for name in names))
    return lookups, keys


async def test_idle_stream_sends_heartbeats(
    served: Api, short: Callable[[Any, str, float], None]
) -> None:
    short(stream_events, "HEARTBEAT_SECONDS", 0.2)
    image = await uploaded(served)
    claims = await claimed_images(served, image)
    async with reading(served.client, path_of(image)) as reader:
        events = reader.events()
        await anext(events)
        waiting = asyncio.create_task(rest(events))
        await eventually(lambda: heard(reader, 3))
        await finish(served, *claims)
        assert [event.event for event in await waiting] == ["complete"]


async def heard(reader: Any, comments: int) -> bool:
    return bool(reader.comments >= comments)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, float], None]:
    """Shorten a constant that is too long for a test."""
    return monkeypatch.setattr


# --- Failures -------------------------------------------------------------------------------------


async def test_store_outage_delays_events_and_loses_none(
    served: Api, short: Callable[[Any, str, float], None]
) -> None:
    image = await uploaded(served)
    claims = await claimed_images(served, image)
    async with reading(served.client, path_of(image)) as reader:
        events = reader.events()
        await anext(events)
        short(stream_events, "FIRST_STATE_SECONDS", 0.3)  # for the request while the store fails
        with closing(sqlite3.connect(served.settings.data_dir / "records.db")) as database:
            database.execute("ALTER TABLE records RENAME TO elsewhere")
            refused = await served.client.get(path_of(image))
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert refused.headers["retry-after"]
            await polled(served.services.image_poller, 2)
            database.execute("ALTER TABLE elsewhere RENAME TO records")
        await finish(served, *claims)
        assert [event.event async for event in events] == ["complete"]


async def test_disconnected_client_leaves_nothing_behind(served: Api) -> None:
    image = await uploaded(served)
    for _ in range(3):
        async with reading(served.client, path_of(image)) as reader:
            await anext(reader.events())
            assert len(served.services.streams) == 1
        await eventually(lambda: released(served))
    # One that resets the connection before the response, and one after it.
    port = served.client.base_url.port
    head = f"GET {path_of(image)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for patient in (False, True):
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            rude.sendall(head)
            if patient:
                await eventually(lambda: opened(served, 1))
        await eventually(lambda: released(served))


async def test_client_that_does_not_read_is_dropped(
    tmp_path: Path, colour_bundle: Path, short: Callable[[Any, str, float], None]
) -> None:
    """An error of several megabytes fills every buffer on the way to the client."""
    short(send_timeout, "SEND_SECONDS", 1.0)
    settings = api_settings(tmp_path, colour_bundle, keep_alive_seconds=1)
    async with stoppable(settings) as (server, api):
        image = await uploaded(api)
        with mute_client(api, image):
            await eventually(lambda: opened(api, 1))
            await flood(api, image)
            await eventually(lambda: released(api))
            await eventually(lambda: connected(server, 0))  # `api.client`'s is closed as idle


@contextmanager
def mute_client(api: Api, image: bytes) -> Iterator[None]:
    """A client that requests a stream and does not read it."""
    with socket.create_connection(("127.0.0.1", api.client.base_url.port or 0)) as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.sendall(f"GET {path_of(image)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


async def flood(api: Api, image: bytes) -> None:
    claim = await claimed(api.records, api.key(sha256(image)), LEASE)
    assert claim is not None
    assert await api.records.change(
        claim.key, fail(claim, RecordError("long", "x" * 8_000_000, retryable=True))
    )


# --- Limits and shutdown --------------------------------------------------------------------------


async def test_number_of_streams_is_limited(tmp_path: Path, colour_bundle: Path) -> None:
    async with serve_api(api_settings(tmp_path, colour_bundle, max_streams=2)) as (api, _):
        image = await uploaded(api)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(reading(api.client, path_of(image)))
            refused = await api.client.get(path_of(image))
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            # Other requests are not.
            assert (await api.client.get(path_of(image).removesuffix("/stream"))).is_success
        await eventually(lambda: released(api))
        await api.succeed(sha256(image))
        assert [e.event for e in await everything(api.client, path_of(image))] == ["complete"]


async def test_stream_ends_after_its_longest_duration_and_can_be_resumed(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.STREAM_SECONDS", 0.4)
    async with serve_api(api_settings(tmp_path, colour_bundle)) as (api, _):
        image = await uploaded(api)
        first = await everything(api.client, path_of(image))
        assert [event.event for event in first] == ["update"]
        assert await everything(api.client, path_of(image), first[-1].id) == []
        await api.succeed(sha256(image))
        (last,) = await everything(api.client, path_of(image), first[-1].id)
        assert last.event == "complete"


async def test_shutdown_closes_streams_without_waiting_for_their_clients(
    tmp_path: Path, colour_bundle: Path, short: Callable[[Any, str, float], None]
) -> None:
    """One client does not read. The shutdown timeout here is an hour."""
    short(send_timeout, "SEND_SECONDS", 3600.0)
    settings = api_settings(tmp_path, colour_bundle)
    async with AsyncExitStack() as stack:
        server, api = await stack.enter_async_context(stoppable(settings))
        image, other = await uploaded(api), await uploaded(api, 1)
        readers = [
            await stack.enter_async_context(reading(api.client, path_of(image))) for _ in range(20)
        ]
        streams = [reader.events() for reader in readers]
        await asyncio.gather(*(anext(stream) for stream in streams))
        stack.enter_context(mute_client(api, other))
        await eventually(lambda: opened(api, 21))
        await flood(api, other)
        await eventually(lambda: sending(server))
        server.should_exit = True
        async with asyncio.timeout(TIMEOUT):
            ends = await asyncio.gather(*(rest(stream) for stream in streams))
            await eventually(lambda: connected(server, 0))
        assert all(event.event == "update" for end in ends for event in end)


# --- Processes, tenants and the format ------------------------------------------------------------


async def test_changes_are_seen_by_other_processes(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle)
    async with serve_api(settings) as (one, _), serve_api(settings) as (other, _):
        image = await uploaded(one)
        claims = await claimed_images(one, image)
        async with (
            reading(one.client, path_of(image)) as here,
            reading(other.client, path_of(image)) as there,
        ):
            streams = [here.events(), there.events()]
            firsts = [await anext(stream) for stream in streams]
            assert firsts[0] == firsts[1]
            await finish(other, *claims)
            lasts = [await rest(stream) for stream in streams]
        assert lasts[0] == lasts[1]
        # A client that reconnects to the other process misses nothing.
        assert await everything(other.client, path_of(image), firsts[0].id) == lasts[0][-1:]


async def test_stream_requires_a_key_like_other_reads(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with serve_api(settings) as (api, _):
        ada, bob = await api.issue("ada"), await api.issue("bob", Scope.READ)
        image = picture()
        await api.client.post("/api/v1/images", content=image, headers=bearer(ada))
        await api.finish_submissions()
        await api.succeed(sha256(image), "ada")
        for headers, status in (({}, 401), (bearer(bob), 404), (bearer(ada), 200)):
            answer = await api.client.get(path_of(image), headers=headers)
            assert answer.status_code == status


async def test_stream_ends_when_its_key_is_revoked(
    tmp_path: Path, colour_bundle: Path, short: Callable[[Any, str, float], None]
) -> None:
    short(stream_events, "HEARTBEAT_SECONDS", 0.1)
    settings = api_settings(tmp_path, colour_bundle, api_keys="required", rate_limit="4/hour")
    async with serve_api(settings) as (api, _):
        api.authenticator.trusted_seconds = 0.3
        ada = await api.issue("ada")
        image = picture()
        await api.client.post("/api/v1/images", content=image, headers=bearer(ada))
        await api.finish_submissions()
        async with reading(api.client, path_of(image), **bearer(ada)) as reader:
            events = reader.events()
            await anext(events)
            waiting = asyncio.create_task(rest(events))
            # The key is checked repeatedly; this does not count as requests.
            await eventually(lambda: heard(reader, 12))
            assert not waiting.done()
            assert await api.authenticator.access.keys.change(ada.key.id, revoke())
            async with asyncio.timeout(TIMEOUT):
                (end,) = await waiting
        assert (end.event, end.data["code"]) == ("failed", "unauthenticated")


async def test_stream_of_a_finished_image_has_one_event(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        image = await uploaded(api)
        await api.succeed(sha256(image))
        assert (await api.record(sha256(image))).status is Status.SUCCESS
        (event,) = await everything(api.client, path_of(image))
        assert event.event == "complete"


async def test_first_event_carries_the_time_to_reconnect(served: Api) -> None:
    """Some clients report a block without data as an empty event."""
    image = await uploaded(served)
    await served.succeed(sha256(image))
    text = (await served.client.get(path_of(image))).text
    (block,) = text.strip().split("\n\n")
    assert [line.partition(":")[0] for line in block.splitlines()] == [
        *("retry", "id", "event", "data"),
    ]


def test_events_are_encoded_as_the_standard_parses_them() -> None:
    assert encode(Event(7, Kind.UPDATE, b"{}")) == b"id: 7\nevent: update\ndata: {}\n\n"
    assert encode(Event(None, Kind.FAILED, b"a\nb")) == b"event: failed\ndata: a\ndata: b\n\n"
    assert sse.HEARTBEAT.startswith(b":")
