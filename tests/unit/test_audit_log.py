"""The audit log: a line for each uploaded image. A failing output affects no request."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from app import audit_log as module
from app.audit_log import AuditLog, Entry, dropped_counter
from core.errors import Unavailable
from tests.support.api import Api, api_settings, bearer, open_api
from tests.support.clock import MovableClock
from tests.support.logs import ExclusiveFile, configure, restored_logging
from tests.support.pictures import picture, sha256

MODEL = "m@0123456789ab"
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
TIMEOUT = 30.0  # seconds


def an_entry(number: int = 0, **changes: Any) -> Entry:
    values = {
        "at": NOW,
        "tenant": "acme",
        "key": "key000000001",
        "image_hash": f"{number:064x}",
        "model": MODEL,
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
    """An API, and a list of its audit lines."""
    settings = api_settings(folder, bundle, log_format="json", **changes)
    lines: list[dict[str, Any]] = []
    async with open_api(settings) as api:
        api.audit._output._write = lambda text: lines.extend(map(json.loads, text.splitlines()))
        yield api, lines


async def written(audit: AuditLog) -> None:
    """Wait until every entry is written."""
    await asyncio.to_thread(audit._queue.join)


async def test_each_uploaded_image_leaves_a_line(tmp_path: Path, colour_bundle: Path) -> None:
    image = picture(1)
    async with opened(tmp_path, colour_bundle, api_keys="required") as (api, lines):
        key = await api.issue("acme")
        headers = {
            **bearer(key),
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        client = api.client
        await client.post("/what/fast", files={"img": image}, headers=headers)
        await api.finish_submissions()
        await api.succeed(sha256(image), "acme")
        await client.post("/what/slow", files={"img": image}, headers=headers)
        await client.post("/api/v1/images", content=image, headers=headers)
        # Reads leave none, and neither do refused uploads.
        await client.get(f"/what/status/{sha256(image)}", headers=headers)
        await client.get(f"/api/v1/images/{sha256(image)}", headers=headers)
        await client.post("/what/fast", files={"img": b"no image"}, headers=headers)
        await client.post("/what/fast", files={"img": image})
        await written(api.audit)
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


async def test_each_image_of_a_batch_leaves_one_line(tmp_path: Path, colour_bundle: Path) -> None:
    """Images that are not stored leave none, nor does a repetition of the request."""
    known, new = picture(3), picture(4)
    async with opened(tmp_path, colour_bundle, api_keys="required") as (api, lines):
        key = await api.issue("acme")
        await api.client.post("/what/fast", files={"img": known}, headers=bearer(key))
        await api.finish_submissions()
        await api.succeed(sha256(known), "acme")
        await written(api.audit)
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
        await written(api.audit)
    assert [(line["image_hash"], line["status"], line["cached"]) for line in lines] == [
        (sha256(known), "success", True),
        (sha256(new), "pending", False),
    ]
    for line in lines:
        assert line["job"] == answer.json()["job_id"]
        assert (line["tenant"], line["key"]) == ("acme", key.key.id)
        assert "bytes" not in line


async def test_lines_are_written_to_standard_output_at_every_level(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", output := ExclusiveFile())
    image = picture(2)
    settings = api_settings(tmp_path, colour_bundle, log_level="error")
    with restored_logging():
        configure("api", "console", "error")
        async with open_api(settings) as api:
            await api.client.post("/what/fast", files={"img": image})
    written = [line for line in output.getvalue().splitlines() if "[audit" in line]
    assert len(written) == 1, "lines are written at shutdown at the latest"
    assert f"image_hash={sha256(image)}" in written[0] and "status=pending" in written[0]


@pytest.fixture
def dropped() -> Counter:
    return dropped_counter(CollectorRegistry())


@asynccontextmanager
async def audit_log(
    folder: Path, dropped: Counter, write: Callable[[str], object], **changes: Any
) -> AsyncIterator[AuditLog]:
    log = AuditLog(api_settings(folder, folder), dropped, write=write, **changes)
    log.start()
    try:
        yield log
    finally:
        await log.close()


class Output:
    """An output that blocks, or fails for some lines, and keeps the others."""

    def __init__(self, *, blocked: bool = False, failures: int = 0) -> None:
        self.lines: list[str] = []
        self.writes = 0
        self.writing, self._unblocked = threading.Event(), threading.Event()
        self._failures = failures
        if not blocked:
            self.unblock()

    def unblock(self) -> None:
        self._unblocked.set()

    def __call__(self, text: str) -> None:
        self.writes += 1
        self.writing.set()
        assert self._unblocked.wait(TIMEOUT), "the test does not unblock the output"
        if self._failures:
            self._failures -= 1
            raise OSError("no space left on device")
        self.lines += text.splitlines()

    def numbers(self) -> list[int]:
        return [int(line.split("image_hash=")[1][:64], 16) for line in self.lines]


async def test_entries_beyond_the_capacity_are_counted_and_dropped(
    tmp_path: Path, dropped: Counter
) -> None:
    output = Output(blocked=True)
    async with audit_log(tmp_path, dropped, output, capacity=3) as audit:
        audit.add(an_entry(0))
        assert await asyncio.to_thread(output.writing.wait, TIMEOUT)
        for number in range(1, 6):
            audit.add(an_entry(number))
        assert dropped._value.get() == 2
        output.unblock()
        await written(audit)
        audit.add(an_entry(9))
    assert output.numbers() == [0, 1, 2, 3, 9]
    assert dropped._value.get() == 2


async def test_failed_writes_are_counted_and_later_entries_are_written(
    tmp_path: Path, dropped: Counter
) -> None:
    output = Output(failures=1)
    async with audit_log(tmp_path, dropped, output) as audit:
        audit.add(an_entry(1))
        audit.add(an_entry(2))
        await written(audit)
        audit.add(an_entry(3))
    assert output.numbers() == [3]
    assert dropped._value.get() == 2


async def test_entries_that_arrive_together_are_written_together(
    tmp_path: Path, dropped: Counter
) -> None:
    """A write for each of them would take time from the event loop's thread."""
    output = Output()
    async with audit_log(tmp_path, dropped, output) as audit:
        for number in range(module.BATCH + 1):
            audit.add(an_entry(number))
        await written(audit)
        assert output.numbers() == list(range(module.BATCH + 1))
        assert output.writes == 2


async def test_close_writes_the_remaining_entries_of_a_full_queue(
    tmp_path: Path, dropped: Counter
) -> None:
    output = Output(blocked=True)
    async with audit_log(tmp_path, dropped, output, capacity=2) as audit:
        audit.add(an_entry(0))
        assert await asyncio.to_thread(output.writing.wait, TIMEOUT)
        audit.add(an_entry(1))
        audit.add(an_entry(2))
        asyncio.get_running_loop().call_later(0.05, output.unblock)
    assert output.numbers() == [0, 1, 2]
    assert dropped._value.get() == 0


async def test_close_gives_up_on_an_output_that_hangs(
    tmp_path: Path, dropped: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    output = Output(blocked=True)
    try:
        async with asyncio.timeout(TIMEOUT / 2):
            async with audit_log(tmp_path, dropped, output) as audit:
                for number in range(3):
                    audit.add(an_entry(number))
                assert await asyncio.to_thread(output.writing.wait, TIMEOUT)
        assert dropped._value.get() == 3
    finally:
        output.unblock()


async def test_output_that_hangs_does_not_delay_requests(
    tmp_path: Path, colour_bundle: Path
) -> None:
    output = Output(blocked=True)
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        api.audit._output._write = output
        try:
            for seed in range(3):
                answer = await api.client.post("/what/fast", files={"img": picture(seed)})
                assert answer.status_code == 202
                assert await asyncio.to_thread(output.writing.wait, TIMEOUT)
            assert output.lines == []
        finally:
            output.unblock()
    assert len(output.lines) == 3


async def test_failing_usage_store_affects_no_request_and_loses_no_count(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The counts are kept until a write succeeds."""
    image, clock = picture(3), MovableClock()  # all requests are on one day
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
