"""The contenders, their configurations, and their guarantees, as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from benchmarks.batch import Batch, Seen, Survived
from benchmarks.glimpse import CONNECTIONS, HASHES, SINGLES, ZIP, Glimpse
from benchmarks.peer import Peer
from benchmarks.redis_server import ALWAYS, DEFAULT


class Subject(Protocol):
    def measure(self, batch: Batch, folder: Path) -> Seen: ...

    def survive(self, batch: Batch, folder: Path, timeout: float) -> Survived: ...


@dataclass(frozen=True)
class Contender:
    """`clock` describes what happens between the first byte sent and the last stored result.

    `power_loss` describes what a power loss takes from an accepted job. `killed` describes what
    `kill -9` of the workers does to their tasks. `redis`: whether it needs a Redis server.
    """

    name: str
    subject: Subject
    setup: str
    clock: str
    power_loss: str
    killed: str

    @property
    def redis(self) -> bool:
        return isinstance(self.subject, Peer)


_SYNCED: Final = "nothing: images, records and messages are synced to disk before the answer"
_LEASE: Final = "delivered again when the lease ends (30 s); one result an image"
_SNAPSHOT: Final = "everything since Redis's last snapshot: up to 5 min"
_APPEND_ONLY: Final = "nothing: Redis syncs its log before it answers"
_BY_HASH: Final = "one message a task, by one client; images lie on disk beforehand"

_CELERY_LATE: Final = "prefork, -c 2, acks_late, reject_on_worker_lost, prefetch 1"
_CELERY_LATE_KILLED: Final = "delivered again when the visibility timeout ends (1 h)"
_RQ_KILLED: Final = "retried when its heartbeat has expired and a worker cleans up (minutes)"
_STREAM: Final = "RedisStreamBroker, --workers 2, ack when saved, xread_count 10"
_STREAM_KILLED: Final = "delivered again when idle for 10 min"
_SIMPLE: Final = "worker-pool -n 2, SimpleWorker, Retry(3)"

CONTENDERS: Final[Sequence[Contender]] = (
    Contender(
        "Glimpse, job of stored images",
        Glimpse(HASHES),
        "2 classifier processes, no thumbnails; one request with all hashes",
        "one HTTP request; images lie on disk beforehand; a record and an item of the job for each",
        _SYNCED,
        _LEASE,
    ),
    Contender(
        "Glimpse, job as a zip",
        Glimpse(ZIP),
        "2 classifier processes, no thumbnails; one request with all images",
        "the upload, SHA-256, the header's inspection and storage of every image as well",
        _SYNCED,
        _LEASE,
    ),
    Contender(
        "Glimpse, single uploads",
        Glimpse(SINGLES),
        f"2 classifier processes, no thumbnails; a request an image over {CONNECTIONS} connections",
        "an HTTP request, SHA-256, inspection and storage of every image as well",
        _SYNCED,
        _LEASE,
    ),
    Contender(
        "Celery, acks late",
        Peer("celery", "late", DEFAULT),
        _CELERY_LATE,
        _BY_HASH,
        _SNAPSHOT,
        _CELERY_LATE_KILLED,
    ),
    Contender(
        "Celery, acks late, Redis synced",
        Peer("celery", "late", ALWAYS),
        f"{_CELERY_LATE}; appendfsync always",
        _BY_HASH,
        _APPEND_ONLY,
        _CELERY_LATE_KILLED,
    ),
    Contender(
        "Celery, defaults",
        Peer("celery", "early", DEFAULT),
        "prefork, -c 2, early acks, prefetch 4 a process",
        _BY_HASH,
        _SNAPSHOT,
        "lost while it runs; prefetched ones come again after 1 h",
    ),
    Contender(
        "RQ, forking",
        Peer("rq", "forking", DEFAULT),
        "worker-pool -n 2, Worker, model loaded before the fork, Retry(3)",
        _BY_HASH,
        _SNAPSHOT,
        _RQ_KILLED,
    ),
    Contender(
        "RQ, SimpleWorker",
        Peer("rq", "simple", DEFAULT),
        _SIMPLE,
        _BY_HASH,
        _SNAPSHOT,
        _RQ_KILLED,
    ),
    Contender(
        "RQ, SimpleWorker, enqueue_many",
        Peer("rq", "simple-many", DEFAULT),
        f"{_SIMPLE}; all in one call",
        "one call with all tasks, by one client; images lie on disk beforehand",
        _SNAPSHOT,
        _RQ_KILLED,
    ),
    Contender(
        "RQ, SimpleWorker, Redis synced",
        Peer("rq", "simple", ALWAYS),
        f"{_SIMPLE}; appendfsync always",
        _BY_HASH,
        _APPEND_ONLY,
        _RQ_KILLED,
    ),
    Contender(
        "taskiq, list",
        Peer("taskiq", "list", DEFAULT),
        "ListQueueBroker, --workers 2",
        _BY_HASH,
        _SNAPSHOT,
        "lost: a list has no acknowledgement",
    ),
    Contender(
        "taskiq, stream",
        Peer("taskiq", "stream", DEFAULT),
        _STREAM,
        _BY_HASH,
        _SNAPSHOT,
        _STREAM_KILLED,
    ),
    Contender(
        "taskiq, stream, Redis synced",
        Peer("taskiq", "stream", ALWAYS),
        f"{_STREAM}; appendfsync always",
        _BY_HASH,
        _APPEND_ONLY,
        _STREAM_KILLED,
    ),
)
