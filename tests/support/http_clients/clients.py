"""The clients, by name."""

import asyncio
import base64
import io
import itertools
import subprocess
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx
import requests
from playwright.sync_api import sync_playwright

from tests.support.browsers import launch_browser
from tests.support.http_clients.base import (
    JPEG,
    PROGRAMS,
    File,
    HttpClient,
    Program,
    Reply,
    required,
)

SECONDS = 60
T = TypeVar("T")


class Requests(HttpClient):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._session = requests.Session()
        self._session.trust_env = False

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        parts = [(field, (name, data, JPEG)) for name, data in files]
        return self._reply(self._session.post(url, files=parts, timeout=SECONDS))

    def post(self, url: str, data: bytes) -> Reply:
        headers = {"Content-Type": JPEG}
        return self._reply(self._session.post(url, data=data, headers=headers, timeout=SECONDS))

    def get(self, url: str) -> Reply:
        return self._reply(self._session.get(url, timeout=SECONDS))

    def close(self) -> None:
        self._session.close()

    def _reply(self, response: requests.Response) -> Reply:
        return Reply(response.status_code, response.content)


class Httpx(HttpClient):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._client = httpx.Client(timeout=SECONDS, trust_env=False)

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        parts = [(field, (name, data, JPEG)) for name, data in files]
        return self._reply(self._client.post(url, files=parts))

    def post(self, url: str, data: bytes) -> Reply:
        return self._reply(self._client.post(url, content=data, headers={"Content-Type": JPEG}))

    def get(self, url: str) -> Reply:
        return self._reply(self._client.get(url))

    def close(self) -> None:
        self._client.close()

    def _reply(self, response: httpx.Response) -> Reply:
        return Reply(response.status_code, response.content)


class Aiohttp(HttpClient):
    """Runs in a thread: a browser's driver blocks the event loop of this one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS))

        self._session: aiohttp.ClientSession = self._run(session())

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        form = aiohttp.FormData()
        for name, data in files:
            form.add_field(field, io.BytesIO(data), filename=name, content_type=JPEG)
        return self._request("POST", url, data=form)

    def post(self, url: str, data: bytes) -> Reply:
        return self._request("POST", url, data=io.BytesIO(data), headers={"Content-Type": JPEG})

    def get(self, url: str) -> Reply:
        return self._request("GET", url)

    def close(self) -> None:
        self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _request(self, method: str, url: str, **options: Any) -> Reply:
        async def request() -> Reply:
            async with self._session.request(method, url, **options) as response:
                return Reply(response.status, await response.read())

        return self._run(request())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)


class Command(HttpClient):
    """A command that makes one request and ends. It writes the body to a file."""

    program: ClassVar[str]
    keeps_connections = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._command = required(self.program)
        self._bodies = (folder / f"body-{number}" for number in itertools.count())


class Curl(Command):
    program = "curl"

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        parts = []
        for name, data in files:
            quoted = name.replace("\\", "\\\\").replace('"', '\\"')
            parts += ["--form", f'{field}=@{self._files.write(data)};filename="{quoted}"']
        return self._run(*parts, url)

    def post(self, url: str, data: bytes) -> Reply:
        return self._run("--data-binary", f"@{self._files.write(data)}", url)

    def get(self, url: str) -> Reply:
        return self._run(url)

    def _run(self, *arguments: str) -> Reply:
        body = next(self._bodies)
        command = [self._command, "--silent", "--show-error", "--noproxy", "*"]
        done = subprocess.run(
            [*command, "--output", str(body), "--write-out", "%{http_code}", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return Reply(int(done.stdout), body.read_bytes())


class Wget(Command):
    """Sends no forms. It reads a response only after it has sent the whole body."""

    program = "wget"
    sends_forms = False

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        raise NotImplementedError

    def post(self, url: str, data: bytes) -> Reply:
        return self._run(
            f"--post-file={self._files.write(data)}", f"--header=Content-Type: {JPEG}", url
        )

    def get(self, url: str) -> Reply:
        return self._run(url)

    def _run(self, *arguments: str) -> Reply:
        body = next(self._bodies)
        command = [self._command, "--tries=1", "--no-proxy", "--content-on-error"]
        done = subprocess.run(
            [*command, "--server-response", f"--output-document={body}", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        statuses = [line.split()[1] for line in done.stderr.splitlines() if "  HTTP/1.1 " in line]
        assert statuses, done.stderr
        return Reply(int(statuses[-1]), body.read_bytes())


class NodeFetch(Program):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, required("node"), PROGRAMS / "fetch.mjs")


class Java(Program):
    def __init__(self, folder: Path) -> None:
        required("javac")  # a program in one file needs the compiler
        super().__init__(folder, required("java"), PROGRAMS / "Client.java")


class Browser(HttpClient):
    """Chromium's fetch and FormData, in a page of the service."""

    _FETCH: ClassVar[str] = """async ([url, field, files]) => {
        const blob = (encoded) => {
            const text = atob(encoded), bytes = new Uint8Array(text.length);
            for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
            return new Blob([bytes]);
        };
        const options = {};
        if (field) {
            options.body = new FormData();
            for (const [name, data] of files) options.body.append(field, blob(data), name);
        } else if (files.length) {
            options.body = blob(files[0][1]);
            options.headers = { "Content-Type": "image/jpeg" };
        }
        if (options.body) options.method = "POST";
        const response = await fetch(url, options);
        return [response.status, await response.text()];
    }"""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._playwright = sync_playwright().start()
        try:
            self._browser = launch_browser(self._playwright)
        except BaseException:
            self._playwright.stop()
            raise
        self._page = self._browser.new_page()

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        return self._fetch(url, field, files)

    def post(self, url: str, data: bytes) -> Reply:
        return self._fetch(url, "", [("", data)])

    def get(self, url: str) -> Reply:
        return self._fetch(url, "", [])

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()

    def _fetch(self, url: str, field: str, files: Sequence[File]) -> Reply:
        origin = "{0.scheme}://{0.netloc}/".format(urlsplit(url))
        if not self._page.url.startswith(origin):
            self._page.goto(origin)
        encoded = [[name, base64.b64encode(data).decode()] for name, data in files]
        status, body = self._page.evaluate(self._FETCH, [url, field, encoded])
        return Reply(status, body.encode())


CLIENTS: dict[str, type[HttpClient]] = {
    "requests": Requests,
    "httpx": Httpx,
    "aiohttp": Aiohttp,
    "curl": Curl,
    "wget": Wget,
    "Node fetch": NodeFetch,
    "Java": Java,
    "a browser": Browser,
}
