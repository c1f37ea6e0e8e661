"""Tests a running Glimpse: `python -m deploy.smoke http://127.0.0.1:8080`.

It uploads a new image and waits for the labels. A second upload must return them immediately. Then
it deletes the image. It needs only the standard library.

It sends `GLIMPSE_API_KEY` as `Authorization: Bearer`, and `GLIMPSE_IDENTITY_TOKEN` as
`X-Serverless-Authorization: Bearer`, which Cloud Run checks and removes:
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
RESULT_SECONDS = 120.0  # longest time until the labels. An instance may have to start first
REQUEST_SECONDS = 60.0
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0  # seconds between two requests
SIDE = 32  # pixels
TERMINAL = ("success", "error")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Report = Callable[[str], None]


class SmokeFailed(Exception):
    """The service did not respond as expected. The text has its response."""


@dataclass(frozen=True)
class Answer:
    """A response. The names of its headers are in lower case."""

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
    """A service and the secrets for it. Raises ValueError for secrets over plain HTTP."""

    url: str
    api_key: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not the address of a service: {self.url}")
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
        """The response with any status. Raises SmokeFailed if there is none."""
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


def random_image(seed: bytes) -> bytes:
    """A small PNG with colours from `seed`. Another seed gives another image."""
    shades = hashlib.shake_256(seed).digest(SIDE * 3)
    rows = b"".join(
        b"\0" + bytes((value + 5 * row) % 256 for value in shades) for row in range(SIDE)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def smoke(
    target: Target, seconds: float = RESULT_SECONDS, report: Report = lambda line: None
) -> str:
    """Upload an image and wait up to `seconds` for its labels. Returns the model.

    Raises SmokeFailed.
    """
    image = random_image(secrets.token_bytes(16))
    image_hash = hashlib.sha256(image).hexdigest()
    path = f"{IMAGES}/{image_hash}"
    began = time.monotonic()
    first = _upload(target, image)
    _expect(first.status in (200, 202), "the upload", first)
    try:
        _expect(first.json().get("image_hash") == image_hash, "the hash of the upload", first)
        report(f"uploaded: {first.status} {first.json().get('status')}")
        result = _wait_for_result(target, path, began + seconds)
        document = result.json()
        _expect(document.get("status") == "success", "the result", result)
        _expect(bool(document.get("annotations")), "the labels", result)
        report(f"labelled: {document['model']} after {time.monotonic() - began:.1f} s")
        again = _upload(target, image)
        _expect(again.status == 200, "the second upload", again)
        for name in ("status", "model", "annotations"):
            _expect(again.json().get(name) == document[name], f"the second upload's {name}", again)
        report("known: the second upload returned the labels immediately")
    except BaseException:
        # The first failure is the reason. A second one is only reported.
        try:
            _delete(target, path, report)
        except SmokeFailed as error:
            report(str(error))
        raise
    _delete(target, path, report)
    return str(document["model"])


def _upload(target: Target, image: bytes) -> Answer:
    return target.request("POST", IMAGES, image, {"Content-Type": "image/png"})


def _wait_for_result(target: Target, path: str, deadline: float) -> Answer:
    pause = FIRST_PAUSE
    while True:
        answer = target.request("GET", path)
        if answer.status == 200 and answer.json().get("status") in TERMINAL:
            return answer
        # A 5xx may be temporary. Every other status is final.
        _expect(answer.status == 202 or answer.status >= 500, "the lookup", answer)
        if time.monotonic() + pause > deadline:
            raise SmokeFailed(f"no labels in time. The last response was {_shown(answer)}")
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def _delete(target: Target, path: str, report: Report) -> None:
    """Delete the image. Raises SmokeFailed, so that no test leaves images behind unnoticed."""
    answer = target.request("DELETE", path)
    if answer.status == 403:
        raise SmokeFailed(
            f"the image stays: its deletion needs a key with the scope admin: {_shown(answer)}"
        )
    _expect(answer.status == 204, "the deletion", answer)
    report("deleted")


def _expect(condition: bool, what: str, answer: Answer) -> None:
    if not condition:
        raise SmokeFailed(f"{what}: {_shown(answer)}")


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:300].decode(errors='replace')}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Upload a new image and wait for its labels.")
    parser.add_argument("url", help="address of the API")
    parser.add_argument(
        "--timeout",
        type=float,
        default=RESULT_SECONDS,
        help="longest time until the image has labels, in seconds",
    )
    arguments = parser.parse_args()
    try:
        target = Target(
            arguments.url,
            os.environ.get("GLIMPSE_API_KEY", ""),
            os.environ.get("GLIMPSE_IDENTITY_TOKEN", ""),
        )
        smoke(target, arguments.timeout, print)
    except (SmokeFailed, ValueError) as error:
        sys.exit(f"smoke test failed: {error}")


if __name__ == "__main__":
    main()
