"""Keys with real processes: two APIs share one store, and one is killed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.support.plain_http import NO_TLS
from tests.support.process import with_constants
from tests.support.stack import Stack

MOST_SECONDS = 120  # seconds that the requests take on a busy machine
UNKNOWN = f"/api/v1/images/{'0' * 64}"


@contextmanager
def two_apis(folder: Path, bundle: Path, **settings: str) -> Iterator[tuple[Stack, Stack]]:
    """Two API processes with the same data, and no other process."""
    shared = {
        "API_KEYS": "required",
        "RATE_LIMIT": "off",
        **with_constants(KEY_CACHE_SECONDS=1),
        "DATA_DIR": str(folder / "data"),
        **settings,
    }
    folder.mkdir()
    first, second = (Stack(folder / name, bundle, **shared) for name in ("first", "second"))
    try:
        for stack in (first, second):
            stack.folder.mkdir()
            if stack is first and stack.on_emulators:
                stack.set_up()
            stack.start("api")
        yield first, second
    finally:
        for stack in (first, second):
            stack.__exit__()


@pytest.fixture(params=["embedded", "emulator"])
def apis(
    request: pytest.FixtureRequest, tmp_path: Path, colour_bundle: Path
) -> Iterator[tuple[Stack, Stack]]:
    settings = {}
    if request.param == "emulator":
        settings = request.getfixturevalue("own_namespace")
    with two_apis(tmp_path / "two", colour_bundle, **settings) as both:
        yield both


def ask(stack: Stack, key: str, method: str = "GET", path: str = UNKNOWN) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(
        method,
        f"http://127.0.0.1:{stack.api_port}{path}",
        headers=headers,
        timeout=60,
        verify=NO_TLS,
    )


def not_at_midnight() -> None:
    """Wait for the next day if this one ends soon, because quotas are per day."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    left = (midnight - now).total_seconds()
    if left < MOST_SECONDS:
        time.sleep(left + 1)


def test_two_processes_are_one_service_to_a_key(apis: tuple[Stack, Stack]) -> None:
    first, second = apis
    not_at_midnight()
    admin = first.make_key("--tenant", "acme", "--scopes", "all")
    key = first.make_key("--tenant", "acme", "--scopes", "read", "--daily-quota", "30")

    # One quota for both processes.
    statuses = [ask((first, second)[n % 2], key).status_code for n in range(40)]
    assert statuses.count(404) == 30
    assert set(statuses) == {404, 429}
    assert int(ask(first, key).headers["retry-after"]) > 0

    # A killed process returns no reserved share.
    first.kill("api")
    first.start("api")
    assert ask(first, key).status_code == 429

    # Rotated in one process: both secrets are valid in both. The id and the used quota stay.
    rotated = ask(second, admin, "POST", f"/api/v1/keys/{key[4:16]}/rotate").json()
    assert rotated["id"] == key[4:16]
    for text in (key, rotated["key"]):
        for stack in apis:
            assert ask(stack, text).status_code == 429

    # Revoked in one process: refused there at once, and in the other when its cache expires.
    assert ask(second, admin, "DELETE", f"/api/v1/keys/{key[4:16]}").status_code == 204
    revoked_at = time.monotonic()
    assert ask(second, key).status_code == 401
    while ask(first, key).status_code != 401:
        assert time.monotonic() - revoked_at < 60, "revocation takes effect within a minute"
        time.sleep(0.05)
    assert ask(first, rotated["key"]).status_code == 401
    assert ask(first, admin).status_code == 404

    # The usage has the counts of the other process. The killed one lost its last seconds.
    usage = ask(second, admin, path="/api/v1/usage?keys=all").json()["usage"]
    (row,) = [row for row in usage if row["key_id"] == key[4:16]]
    assert 0 < row["requests"] <= 30
    assert row["refused"] > 0
