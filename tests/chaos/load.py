"""Clients that upload, poll, and record the responses."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS

RETRY_SECONDS = 0.2  # before a client tries again


@dataclass
class Ledger:
    """What clients saw. `accepted` and `ended` have `time.monotonic` seconds by image hash."""

    accepted: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, answer: httpx.Response, image_hash: str, asked: float) -> None:
        """Check a response about an image against the responses from before it was `asked` for.

        Of two concurrent requests, the later response may have been decided first.
        """
        with self.lock:
            self.answers[answer.status_code] += 1
            if answer.status_code not in (200, 202, 503):
                where = f"{answer.request.method} {answer.request.url.path}"
                self.wrong.append(f"{answer.status_code} to {where}: {answer.text[:200]}")
                return
            if answer.status_code == 503:
                return
            told = answer.json()
            known = self.results.get(image_hash)
            if answer.status_code == 202:
                self.accepted.setdefault(image_hash, time.monotonic())
                if known is not None and self.ended[image_hash] < asked:
                    self.changed.append(f"{image_hash}: {known['status']}, then {told['status']}")
            elif known is None:
                self.results[image_hash] = told
                self.ended[image_hash] = time.monotonic()
            elif known != told:
                self.changed.append(f"{image_hash}: {known}, then {told}")

    @property
    def unfinished(self) -> set[str]:
        with self.lock:
            return self.accepted.keys() - self.results.keys()

    @property
    def longest(self) -> float:
        """Seconds from the first 202 of an image until a client sees that it ended."""
        accepted = self.accepted
        times = (end - accepted[each] for each, end in self.ended.items() if each in accepted)
        return max(times, default=0.0)


class Watcher(threading.Thread):
    """Polls every accepted image until it has ended."""

    def __init__(self, base_url: str, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(name="watcher", daemon=True)
        self._base_url = base_url
        self._ledger = ledger
        self._stop_event = stop

    def run(self) -> None:
        with httpx.Client(base_url=self._base_url, timeout=60, verify=NO_TLS) as http:
            while not self._stop_event.wait(RETRY_SECONDS):
                for image_hash in self._ledger.unfinished:
                    if self._stop_event.is_set():
                        break
                    ask(http, self._ledger, image_hash)


class Sender(threading.Thread):
    """Sends requests for new images until `stop` is set; `rate` is in images per second."""

    def __init__(self, kind: str, number: int, rate: float, stop: threading.Event) -> None:
        """The images of each `number` differ."""
        super().__init__(name=f"{kind}-{number}", daemon=True)
        self._number = number
        self._pause = 1 / rate
        self._stop_event = stop
        self._draw = random.Random(number)


class Client(Sender):
    """Uploads new images and sometimes known ones, and polls.

    It retries after a 503 or a broken connection.
    """

    def __init__(
        self, base_url: str, ledger: Ledger, number: int, rate: float, stop: threading.Event
    ) -> None:
        super().__init__("client", number, rate, stop)
        self._base_url = base_url
        self._ledger = ledger

    def run(self) -> None:
        sent: list[bytes] = []
        with httpx.Client(base_url=self._base_url, timeout=60, verify=NO_TLS) as http:
            while not self._stop_event.is_set():
                image = picture(seed=self._number * 1_000_000 + len(sent), size=(32, 32))
                sent.append(image)
                self._until_taken(http, image)
                again = self._draw.choice(sent)
                if self._draw.random() < 0.3:
                    self._try(http, again)
                ask(http, self._ledger, sha256(again))
                self._stop_event.wait(self._pause)

    def _until_taken(self, http: httpx.Client, image: bytes) -> None:
        while self._try(http, image) not in (200, 202):
            if self._stop_event.wait(RETRY_SECONDS):
                return

    def _try(self, http: httpx.Client, image: bytes) -> int:
        """The status, or 0 if the connection broke."""
        asked = time.monotonic()
        try:
            answer = http.post("/what/fast", files={"img": ("picture.jpg", image)})
        except httpx.TransportError:
            return 0
        self._ledger.note(answer, sha256(image), asked)
        return answer.status_code


def ask(http: httpx.Client, ledger: Ledger, image_hash: str) -> None:
    """Record the response about the image, if there is one."""
    asked = time.monotonic()
    try:
        answer = http.get(f"/what/status/{image_hash}")
    except httpx.TransportError:
        return
    if answer.status_code == 404 and image_hash not in ledger.accepted:
        return  # its upload was never accepted
    ledger.note(answer, image_hash, asked)
