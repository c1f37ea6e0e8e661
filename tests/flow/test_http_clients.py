"""Clients that people use, against real processes: names, refusals, streams, idle connections."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from _pytest.outcomes import Skipped

from tests.support.http_clients.base import HttpClient
from tests.support.http_clients.clients import CLIENTS
from tests.support.pictures import picture
from tests.support.stack import MODULES, ROOT, Stack, free_port, until

MAX_IMAGE_BYTES = 300_000
# More than the buffers of a connection hold: the client still sends when the API responds.
TOO_LARGE = 8_000_000
NAMES = (
    "Größe 猫.jpg",
    "Screenshot at 9.41.00\u202fAM.jpg",
    "my cat (2) + 100%.jpg",
    'the "best" one; really.jpg',
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, colour_bundle: Path) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("clients")
    with Stack(folder, colour_bundle, MAX_IMAGE_BYTES=MAX_IMAGE_BYTES) as running:
        yield running


class Opened:
    """Opens each client when it is first used, and closes all of them in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients: dict[str, HttpClient] = {}

    def __getitem__(self, name: str) -> HttpClient:
        if name not in self._clients:
            self._clients[name] = CLIENTS[name](self._folder / name)
        return self._clients[name]

    def available(self) -> dict[str, HttpClient]:
        """The clients that this machine has."""
        found = {}
        for name in CLIENTS:
            with suppress(Skipped):
                found[name] = self[name]
        return found

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    opened = Opened(tmp_path_factory.mktemp("programs"))
    yield opened
    opened.close()


@pytest.fixture
def url(stack: Stack) -> str:
    return str(stack.api.base_url).rstrip("/")


@pytest.mark.parametrize("name", [name for name in CLIENTS if CLIENTS[name].sends_forms])
def test_names_return_as_they_were_sent(name: str, clients: Opened, url: str) -> None:
    client = clients[name]
    files = [(each, picture(seed)) for seed, each in enumerate(NAMES)]
    reply = client.form(f"{url}/api/v1/jobs/batch-predict", "imgs", files)
    assert reply.status == 202, reply
    job = f"{url}/api/v1/jobs/{reply.json()['job_id']}"
    until(lambda: client.get(job).json()["status"] == "completed", "the job")
    results = client.get(f"{job}/results").json()["results"]
    assert [each["name"] for each in results] == list(NAMES)
    assert {each["status"] for each in results} == {"succeeded"}


@pytest.mark.parametrize("name", CLIENTS)
def test_refusal_of_a_large_body_is_readable(name: str, clients: Opened, url: str) -> None:
    client = clients[name]
    large = picture(seed=1) + bytes(TOO_LARGE)
    replies = [client.post(f"{url}/api/v1/images", large)]
    if client.sends_forms:
        replies.append(client.form(f"{url}/api/v1/images", "img", [("large.jpg", large)]))
    for reply in replies:
        assert (reply.status, reply.json()["max_bytes"]) == (413, MAX_IMAGE_BYTES)


@pytest.mark.parametrize("name", CLIENTS)
def test_stream_is_read_to_its_end(name: str, clients: Opened, url: str) -> None:
    client = clients[name]
    image = picture(seed=100 + list(CLIENTS).index(name))  # not processed before
    reply = client.post(f"{url}/api/v1/images", image)
    assert reply.status == 202, reply
    stream = client.get(f"{url}/api/v1/images/{reply.json()['image_hash']}/stream")
    events = [line for line in stream.body.decode().splitlines() if line.startswith("event: ")]
    assert (stream.status, events[-1]) == (200, "event: complete")


def test_clients_continue_after_the_server_closes_their_idle_connections(
    stack: Stack, clients: Opened
) -> None:
    keeping = {name: each for name, each in clients.available().items() if each.keeps_connections}
    with _impatient_api(stack) as (process, port):
        url = f"http://127.0.0.1:{port}/api/v1/images"
        for name, client in keeping.items():
            assert client.post(url, picture(seed=1)).status in (200, 202), name
        assert _connections(process, port), "no client keeps a connection"
        until(lambda: not _connections(process, port), "the end of the idle connections")
        for name, client in keeping.items():
            assert client.post(url, picture(seed=1)).status in (200, 202), name


@contextmanager
def _impatient_api(stack: Stack) -> Iterator[tuple[psutil.Process, int]]:
    """Another API process, which closes idle connections after a second, and its port."""
    port = free_port()
    settings = {"API_PORT": str(port), "KEEP_ALIVE_SECONDS": "1"}
    with (stack.folder / "impatient.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULES["api"]],
            cwd=ROOT,
            env={**stack.environment, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: _serves(port), "the other API")
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def _serves(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _connections(process: psutil.Process, port: int) -> list[object]:
    """The open connections of the service's clients."""
    return [
        each
        for each in process.net_connections(kind="inet")
        if each.laddr and each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
    ]
