"""A line for each image that was given, after the answer; and nothing that goes wrong with it, or
with the counting of usage, touches a request."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from app.audit_log import AuditLog, Entry, dropped_counter
from core.errors import Unavailable
from tests.support.api import Api, api_settings, bearer, eventually, open_api
from tests.support.clock import MovableClock
from tests.support.pictures import picture, sha256

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
PATIENCE = 30.0  # seconds


def an_entry(number: int = 0, **changes: Any) -> Entry:
    values = {
        "at": NOW,
        "tenant": "acme",
        "key": "key000000001",
        "image_hash": f"{number:064x}",
        "model": "m@0123456789ab",
        "status": "success",
        "cached": True,
        "bytes": 7,
        "seconds": 0.01234,
        "trace": "0af7651916cd43dd8448eb211c80319c",
    }
    return Entry(**{**values, **changes})


@asynccontextmanager
async def opened(
    folder: Path, bundle: Path, **changes: object
) -> AsyncIterator[tuple[Api, list[dict[str, Any]]]]:
    """An API whose audit lines come into a list."""
    settings = api_settings(folder, bundle, log_format="json", **changes)
    lines: list[dict[str, Any]] = []
    async with open_api(settings) as api:
        api.audit._write = lambda text: lines.extend(json.loads(line) for line in text.splitlines())
        yield api, lines


async def test_each_image_that_is_given_leaves_a_line(tmp_path: Path, colour_bundle: Path) -> None:
    image = picture(1)
    async with opened(tmp_path, colour_bundle, api_keys="required") as (api, lines):
        key = await api.issue("acme")
        headers = {
            **bearer(key),
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        client = api.client
        await client.post("/what/fast", files={"img": image}, headers=headers)
        await api.settle()
        await api.succeed(sha256(image), "acme")
        await client.post("/what/slow", files={"img": image}, headers=headers)
        await client.post("/api/v1/images", content=image, headers=headers)
        # Asking leaves none, and neither does what was no prediction.
        await client.get(f"/what/status/{sha256(image)}", headers=headers)
        await client.get(f"/api/v1/images/{sha256(image)}", headers=headers)
        await client.post("/what/fast", files={"img": b"no image"}, headers=headers)
        await client.post("/what/fast", files={"img": image})
        await api.audit.flush()
    assert [(line["status"], line["cached"]) for line in lines] == [
        ("pending", False),
        ("success", True),
        ("success", True),
    ]
    for line in lines:
        assert line.pop("milliseconds") >= 0
        assert line.pop("time").startswith("20")
        assert line == {
            "message": "prediction",
            "log": "audit",
            "severity": "INFO",
            "service": "api",
            "tenant": "acme",
            "key": key.key.id,
            "image_hash": sha256(image),
            "model": api.services.model,
            "status": line["status"],
            "cached": line["cached"],
            "bytes": len(image),
            "trace": "0af7651916cd43dd8448eb211c80319c",
        }


async def test_each_image_of_a_batch_leaves_a_line(tmp_path: Path, colour_bundle: Path) -> None:
    """That is stored; a repetition of the request gives no image, and equal ones are one."""
    known, new = picture(3), picture(4)
    async with opened(tmp_path, colour_bundle, api_keys="required") as (api, lines):
        key = await api.issue("acme")
        await api.client.post("/what/fast", files={"img": known}, headers=bearer(key))
        await api.settle()
        await api.succeed(sha256(known), "acme")
        await api.audit.flush()
        lines.clear()
        batch = [("imgs", each) for each in (known, new, b"no image", new)]
        headers = {**bearer(key), "Idempotency-Key": "once"}
        for _ in range(2):
            answer = await api.client.post(
                "/api/v1/jobs/batch-predict", files=batch, headers=headers
            )
            assert answer.status_code == 202
        unknown = {"image_hashes": ["0" * 64]}
        await api.client.post("/api/v1/jobs/batch-predict", json=unknown, headers=bearer(key))
        await api.audit.flush()
    assert [(line["image_hash"], line["status"], line["cached"]) for line in lines] == [
        (sha256(known), "success", True),
        (sha256(new), "pending", False),
    ]
    for line in lines:
        assert line["job"] == answer.json()["job_id"]
        assert (line["tenant"], line["key"]) == ("acme", key.key.id)
        assert "bytes" not in line


async def test_lines_are_on_standard_output_at_every_level(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(2)
    settings = api_settings(tmp_path, colour_bundle, log_level="error")
    async with open_api(settings) as api:
        await api.client.post("/what/fast", files={"img": image})
    written = [line for line in capsys.readouterr().out.splitlines() if "[audit" in line]
    assert len(written) == 1, "it is written at the latest when the service stops"
    assert f"image_hash={sha256(image)}" in written[0] and "status=pending" in written[0]


async def test_a_setting_turns_it_off(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, audit_log=False)) as api:
        answer = await api.client.post("/what/fast", files={"img": picture()})
        assert answer.status_code == 202
    assert "[audit" not in capsys.readouterr().out


@pytest.fixture
def dropped() -> Counter:
    return dropped_counter(CollectorRegistry())


def an_audit_log(dropped: Counter, write: Any, tmp_path: Path, **changes: Any) -> AuditLog:
    settings = api_settings(tmp_path, tmp_path)
    return AuditLog(settings, "m@0123456789ab", dropped, write=write, **changes)


async def test_what_does_not_fit_is_counted_and_not_waited_for(
    tmp_path: Path, dropped: Counter
) -> None:
    texts: list[str] = []
    audit = an_audit_log(dropped, texts.append, tmp_path, capacity=3)
    for number in range(5):
        audit.add(an_entry(number))
    assert dropped._value.get() == 2
    await audit.flush()
    audit.add(an_entry(9))
    await audit.flush()
    hashes = [line.split("image_hash=")[1][:64] for text in texts for line in text.splitlines()]
    assert hashes == [f"{number:064x}" for number in (0, 1, 2, 9)]
    assert dropped._value.get() == 2


async def test_what_cannot_be_written_is_counted_and_the_next_is_written(
    tmp_path: Path, dropped: Counter
) -> None:
    texts: list[str] = []

    def write(text: str) -> None:
        if not texts:
            texts.append("")
            raise OSError("no space left on device")
        texts.append(text)

    audit = an_audit_log(dropped, write, tmp_path)
    running = asyncio.create_task(audit.run())

    async def lost() -> bool:
        return bool(dropped._value.get() == 2)

    async def written() -> bool:
        return len(texts) == 2

    audit.add(an_entry(1))
    audit.add(an_entry(2))
    await eventually(lost)
    audit.add(an_entry(3))
    await eventually(written)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert f"{3:064x}" in texts[1]


async def test_a_writer_that_hangs_holds_up_no_request(tmp_path: Path, colour_bundle: Path) -> None:
    go_on, reached = threading.Event(), threading.Event()
    let_go: list[bool] = []

    def write(text: str) -> None:
        reached.set()
        let_go.append(go_on.wait(PATIENCE))

    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        api.audit._write = write
        try:
            for seed in range(3):
                answer = await api.client.post("/what/fast", files={"img": picture(seed)})
                assert answer.status_code == 202
                assert seed or await asyncio.to_thread(reached.wait, PATIENCE), "it hangs"
        finally:
            go_on.set()
    assert let_go and all(let_go), "the requests went on while it hung"


async def test_a_store_of_usage_that_fails_touches_no_request_and_loses_nothing(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The counts are kept until they can be written."""
    image, clock = picture(3), MovableClock()  # all of it on one day
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required"), clock) as api:
        key = await api.issue("acme")
        store = api.authenticator.access.usage
        database = store._database  # type: ignore[attr-defined]
        await database.write(
            lambda connection: connection.execute("ALTER TABLE usage RENAME TO gone"), durable=True
        )
        answer = await api.client.post("/what/fast", files={"img": image}, headers=bearer(key))
        assert answer.status_code == 202
        with pytest.raises(Unavailable):
            await api.authenticator.write_usage()
        for _ in range(2):
            path = f"/what/status/{sha256(image)}"
            answer = await api.client.get(path, headers=bearer(key))
            assert answer.status_code == 202
        await database.write(
            lambda connection: connection.execute("ALTER TABLE gone RENAME TO usage"), durable=True
        )
        await api.authenticator.write_usage()
        (usage,) = await store.read("acme", clock().date())
    assert (usage.requests, usage.images, usage.bytes) == (3, 1, len(image))
