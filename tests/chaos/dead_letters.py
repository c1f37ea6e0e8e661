"""Dead letters of jobs, and a client that replays them.

A queue gives a message up after hours of refusals. To have dead letters within seconds, the proxy
between queue and worker delivers some messages of jobs as dead letters.
"""

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle

import httpx

from core.clock import rfc3339, utc_now
from core.domain.messages import (
    DEAD_LETTER_DELIVERY_COUNT,
    DEAD_LETTER_PUBLISH_TIME,
    ClassifyImage,
    Message,
    PushEnvelope,
    RunJob,
    message_of,
)
from core.errors import MalformedEnvelope
from tests.chaos.load import RETRY_SECONDS
from tests.support.plain_http import NO_TLS

POSITIONS = (0, 5)  # of the items of each job whose messages become dead letters
DEAD_JOBS = 3  # of so many jobs, one becomes a dead letter itself


class JobDeadLetters:
    """Selects messages of jobs, each once, and makes dead letters of them."""

    def __init__(self) -> None:
        self._done: set[Message] = set()

    def select(self, body: bytes) -> Message | None:
        """The message in the push, if it is to become a dead letter and has not yet."""
        try:
            envelope = PushEnvelope.parse(body)
            message = message_of(envelope.message.attributes)
        except MalformedEnvelope:
            return None
        known: Message
        match message:
            case ClassifyImage() if message.job and message.position in POSITIONS:
                known = ClassifyImage(message.key, job=message.job, position=message.position)
            case RunJob() if int(message.job, 16) % DEAD_JOBS == 0:
                known = RunJob(message.tenant, message.job)
            case _:
                return None
        return None if known in self._done else known

    def done(self, message: Message) -> None:
        self._done.add(message)


def dead_letter(body: bytes) -> bytes:
    """The push of a message as that of its dead letter."""
    document = json.loads(body)
    message = document["message"]
    message["attributes"] |= {
        DEAD_LETTER_DELIVERY_COUNT: str(document.pop("deliveryAttempt", 1)),
        DEAD_LETTER_PUBLISH_TIME: message["publishTime"],
    }
    message["publishTime"] = message["publish_time"] = rfc3339(utc_now())
    return json.dumps(document).encode()


@dataclass
class ReplayLedger:
    """The outcomes of replays, and the jobs whose letters were replayed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    jobs: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Replayer(threading.Thread):
    """Replays every dead letter of a job, at one API process after another."""

    def __init__(self, base_urls: list[str], ledger: ReplayLedger, stop: threading.Event) -> None:
        super().__init__(name="replayer", daemon=True)
        self._base_urls = base_urls
        self._ledger = ledger
        self._stop_event = stop

    def run(self) -> None:
        with httpx.Client(timeout=60, verify=NO_TLS) as http:
            for base_url in cycle(self._base_urls):
                replay_all(http, base_url, self._ledger)
                if self._stop_event.wait(RETRY_SECONDS):
                    return


def replay_all(http: httpx.Client, base_url: str, ledger: ReplayLedger) -> int:
    """Replay each dead letter of a job; the number of letters that are left, as far as known."""
    url, left = f"{base_url}/api/v1/dead-letters", 0
    try:
        answer = http.get(url, params={"limit": "200"})
        if answer.status_code != 200:
            return 1
        for letter in answer.json()["dead_letters"]:
            if job := letter["attributes"].get("job"):
                left += not _replay(http, f"{url}/{letter['id']}/replay", job, ledger)
    except httpx.TransportError:
        return 1
    return left


def _replay(http: httpx.Client, url: str, job: str, ledger: ReplayLedger) -> bool:
    """Whether the letter is replayed or resolved. Raises TransportError."""
    with ledger.lock:
        ledger.jobs.add(job)  # the response may be lost
    answer = http.post(url)
    if answer.status_code not in (200, 409, 503):
        ledger.wrong.append(f"{answer.status_code} to a replay: {answer.text[:200]}")
    if answer.status_code == 200:
        ledger.outcomes[answer.json()["outcome"]] += 1
    return answer.status_code == 200
