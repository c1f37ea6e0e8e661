"""Ask a running Glimpse one whole question: `python -m deploy.smoke http://127.0.0.1:8080`.

A picture that nobody has sent before goes in, its labels must come out, and the second time at
once. Then it is deleted again. Needs the standard library alone, so that it runs on a bare machine.

`GLIMPSE_API_KEY` is sent as `Authorization: Bearer`, `GLIMPSE_IDENTITY_TOKEN` as
`X-Serverless-Authorization: Bearer`, which Cloud Run takes for itself and does not hand on:
https://cloud.google.com/run/docs/authenticating/service-to-service
"""

import argparse
import hashlib
import json
import os
import secrets
import struct
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

IMAGES = "/api/v1/images"
PATIENCE = 120.0  # seconds for the labels: a first instance may have to start
REQUEST_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between two questions
SIDE = 32  # pixels
TERMINAL = ("success", "error")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Report = Callable[[str], None]


class SmokeFailed(Exception):
    """The service did not do what it promises; the text says what it did instead."""


@dataclass(frozen=True)
class Answer:
    """A response: its status, its fields in lower case, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        try:
            document = json.loads(self.body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise SmokeFailed(f"{self.status} without a JSON object: {self.body[:200]!r}")
        return document


@dataclass(frozen=True)
class Target:
    """A service and what opens it. Raises ValueError for secrets over plain HTTP."""

    url: str
    api_key: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an address of a service: {self.url}")
        secret = self.api_key or self.identity_token
        if secret and parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise ValueError("keys and tokens are not sent over plain HTTP")

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer, whatever its status. Raises SmokeFailed where there is none."""
        request = urllib.request.Request(self.url.rstrip("/") + path, data=body, method=method)
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if self.api_key:
            request.add_unredirected_header("Authorization", f"Bearer {self.api_key}")
        if self.identity_token:
            request.add_unredirected_header(
                "X-Serverless-Authorization", f"Bearer {self.identity_token}"
            )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
                return _answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return _answer(refusal.code, refusal.headers, refusal.read())
        except OSError as error:
            raise SmokeFailed(f"{method} {path} at {self.url}: {error}") from error


def _answer(status: int, headers: Any, body: bytes) -> Answer:
    return Answer(status, {name.lower(): value for name, value in headers.items()}, body)


def drawn_picture(seed: bytes) -> bytes:
    """A small PNG of colours that come from `seed`: another seed, another image."""
    shades = hashlib.shake_256(seed).digest(SIDE * 3)
    rows = b"".join(
        b"\0" + bytes((value + 5 * row) % 256 for value in shades) for row in range(SIDE)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # eight bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def smoke(target: Target, patience: float = PATIENCE, report: Report = lambda line: None) -> str:
    """Follow one new picture to its labels; the model that gave them. Raises SmokeFailed."""
    picture = drawn_picture(secrets.token_bytes(16))
    image_hash = hashlib.sha256(picture).hexdigest()
    where = f"{IMAGES}/{image_hash}"
    began = time.monotonic()
    first = _upload(target, picture)
    _expect(first.status in (200, 202), "the upload", first)
    try:
        _expect(first.json().get("image_hash") == image_hash, "the hash of the upload", first)
        report(f"uploaded: {first.status} {first.json().get('status')}")
        result = _until_terminal(target, where, began + patience)
        document = result.json()
        _expect(document.get("status") == "success", "the result", result)
        _expect(bool(document.get("annotations")), "the labels", result)
        report(f"labelled: {document['model']} after {time.monotonic() - began:.1f} s")
        again = _upload(target, picture)
        _expect(again.status == 200, "the second upload", again)
        for name in ("status", "model", "annotations"):
            _expect(again.json().get(name) == document[name], f"the second upload's {name}", again)
        report("known: answered at once")
    finally:
        _tidy(target, where, report)
    return str(document["model"])


def _upload(target: Target, picture: bytes) -> Answer:
    return target.request("POST", IMAGES, picture, {"Content-Type": "image/png"})


def _until_terminal(target: Target, where: str, deadline: float) -> Answer:
    pause = FIRST_PAUSE
    while True:
        answer = target.request("GET", where)
        if answer.status == 200 and answer.json().get("status") in TERMINAL:
            return answer
        # A 5xx may pass, as it may for any client; anything else is an answer.
        _expect(answer.status == 202 or answer.status >= 500, "the question", answer)
        if time.monotonic() + pause > deadline:
            raise SmokeFailed(f"no labels in time; the last answer was {_shown(answer)}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _tidy(target: Target, where: str, report: Report) -> None:
    """Delete the picture. What cannot be deleted is said, and fails nothing."""
    try:
        status = target.request("DELETE", where).status
    except SmokeFailed as error:
        report(f"not deleted: {error}")
        return
    report("deleted" if status == 204 else f"not deleted: {status}")


def _expect(true: bool, what: str, answer: Answer) -> None:
    if not true:
        raise SmokeFailed(f"{what}: {_shown(answer)}")


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:300].decode(errors='replace')}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Send a new picture and wait for its labels.")
    parser.add_argument("url", help="the API's address")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds for the labels")
    arguments = parser.parse_args()
    try:
        target = Target(
            arguments.url,
            os.environ.get("GLIMPSE_API_KEY", ""),
            os.environ.get("GLIMPSE_IDENTITY_TOKEN", ""),
        )
        smoke(target, arguments.patience, print)
    except (SmokeFailed, ValueError) as error:
        sys.exit(f"smoke test failed: {error}")


if __name__ == "__main__":
    main()
