"""Clients that delete images while they wait, also against uploads of the same image."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import httpx

from tests.chaos.load import RETRY_SECONDS, Sender
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS

SETTLE_SECONDS = 60.0  # for the messages of the last uploads


class Expected(StrEnum):
    """What the last responses about an image promise."""

    KEPT = "kept"  # an upload began after the deletion had ended
    GONE = "gone"
    WHOLE = "whole"  # an upload and the deletion overlapped: all of the image, or nothing
    UNKNOWN = "unknown"  # the experiment ended before a response


@dataclass
class DeletionLedger:
    """What is expected of each image, by its hash."""

    expected: dict[str, Expected] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def deleted(self) -> int:
        with self.lock:
            return sum(each is not Expected.UNKNOWN for each in self.expected.values())

    def expect(self, image_hash: str, expected: Expected) -> None:
        with self.lock:
            self.expected[image_hash] = expected

    def check(self, http: httpx.Client) -> list[str]:
        """The broken promises, after the faults are over and every image had time to end."""
        wrong, ends = list(self.wrong), time.monotonic() + SETTLE_SECONDS
        for image_hash, expected in self.expected.items():
            if expected is Expected.UNKNOWN:
                continue
            while (found := _state(http, image_hash)) not in _ALLOWED[expected]:
                if time.monotonic() > ends:
                    wrong.append(f"{image_hash}: {expected} expected, {found} found")
                    break
                time.sleep(RETRY_SECONDS)
        letters = http.get("/api/v1/dead-letters").json()["dead_letters"]
        wrong += [
            f"{each['image_hash']}: deleted, and a dead letter {each['error']['code']}"
            for each in letters
            if each["image_hash"] in self.expected
        ]
        return wrong


def _state(http: httpx.Client, image_hash: str) -> tuple[int, str, bool]:
    """The status of the response, that of the image, and whether its bytes are stored."""
    answer = http.get(f"/api/v1/images/{image_hash}")
    content = http.get(f"/api/v1/images/{image_hash}/content", follow_redirects=False)
    status = answer.json()["status"] if answer.status_code == 200 else ""
    return answer.status_code, status, content.status_code == 307


_NOTHING, _ALL = (404, "", False), (200, "success", True)
_ALLOWED = {
    Expected.KEPT: {_ALL},
    Expected.GONE: {_NOTHING},
    Expected.WHOLE: {_NOTHING, _ALL},
}


class Deleter(Sender):
    """Uploads an image and deletes it at once; half of the time, against another upload of it.

    Each request goes to one of several API processes.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        ledger: DeletionLedger,
        number: int,
        rate: float,
        stop: threading.Event,
    ) -> None:
        super().__init__("deleter", number, rate, stop)
        self._base_urls = base_urls
        self._ledger = ledger

    def run(self) -> None:
        first = 700_000_000 + self._number * 1_000_000
        with httpx.Client(timeout=60, verify=NO_TLS) as http:
            for seed in range(first, first + 1_000_000):
                self._one_image(http, picture(seed, size=(32, 32)))
                if self._stop_event.wait(self._pause):
                    return

    def _one_image(self, http: httpx.Client, image: bytes) -> None:
        image_hash = sha256(image)
        self._ledger.expect(image_hash, Expected.UNKNOWN)
        if not self._until(lambda: self._upload(http, image), (200, 202)):
            return
        self._stop_event.wait(self._draw.uniform(0, 0.05))
        if self._draw.random() < 0.5:
            expected = self._delete_against_upload(http, image)
        else:
            expected = self._delete_alone(http, image)
        self._ledger.expect(image_hash, expected)

    def _delete_alone(self, http: httpx.Client, image: bytes) -> Expected:
        """Delete the image, and upload it again half of the time."""
        if not self._delete_until_gone(http, image):
            return Expected.UNKNOWN
        if self._draw.random() < 0.5:
            return Expected.GONE
        # A 200 may come from a cache of results, so only a 202 promises that the image is stored.
        again = self._until(lambda: self._upload(http, image), (200, 202))
        return {202: Expected.KEPT, 200: Expected.WHOLE}.get(again, Expected.UNKNOWN)

    def _delete_against_upload(self, http: httpx.Client, image: bytes) -> Expected:
        status, began = 0, 0.0

        def upload() -> int:
            nonlocal began
            began = time.monotonic()
            with httpx.Client(timeout=60, verify=NO_TLS) as other:
                return self._upload(other, image)

        def upload_until_accepted() -> None:
            nonlocal status
            status = self._until(upload, (200, 202))

        racing = threading.Thread(target=upload_until_accepted, daemon=True)
        racing.start()
        deleted = self._delete_until_gone(http, image)
        ended = time.monotonic()
        racing.join()
        if not deleted or not status:
            return Expected.UNKNOWN
        return Expected.KEPT if status == 202 and began > ended else Expected.WHOLE

    def _delete_until_gone(self, http: httpx.Client, image: bytes) -> int:
        path = f"/api/v1/images/{sha256(image)}"
        return self._until(lambda: self._send(http, "DELETE", path), (204, 404))

    def _until(self, step: Callable[[], int], wanted: tuple[int, ...]) -> int:
        """The first wanted status; 0 if the experiment ends before."""
        while not self._stop_event.is_set():
            status = step()
            if status in wanted:
                return status
            self._stop_event.wait(RETRY_SECONDS)
        return 0

    def _upload(self, http: httpx.Client, image: bytes) -> int:
        return self._send(http, "POST", "/what/fast", files={"img": ("picture.jpg", image)})

    def _send(self, http: httpx.Client, method: str, path: str, **request: object) -> int:
        """The status, or 0 if the connection broke."""
        url = f"{self._draw.choice(self._base_urls)}{path}"
        try:
            answer = http.request(method, url, **request)  # type: ignore[arg-type]  # any of its options
        except httpx.TransportError:
            return 0
        if answer.status_code not in (200, 202, 204, 404, 503):
            wrong = f"{answer.status_code} to {method} {path}: {answer.text[:200]}"
            self._ledger.wrong.append(wrong)
        return answer.status_code
