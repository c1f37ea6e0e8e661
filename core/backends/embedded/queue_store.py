"""What the push queue remembers: messages on two subscriptions, and the dead letters it keeps.

Publishers insert from their own processes; one queue process, the owner, leases, settles and
deletes. Only a publication and a replay are fsynced: they are promises. A power loss may undo the
owner's newest bookkeeping, and then a message is delivered again with a smaller attempt number,
which at-least-once delivery allows anyway; the death of every process undoes nothing.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from core.backends.embedded.database import Database, Schema
from core.backends.embedded.times import from_micros, to_micros
from core.clock import rfc3339
from core.messages import DEAD_LETTER_DELIVERY_COUNT, DEAD_LETTER_SUBSCRIPTION

PROJECT = "local"
CLASSIFY = "classify"
DEAD_LETTER = "dead-letter"
DEAD_LETTER_PROJECT = "CloudPubSubDeadLetterSourceSubscriptionProject"
DEAD_LETTER_PUBLISH_TIME = "CloudPubSubDeadLetterSourceTopicPublishTime"

SCHEMA = Schema(
    version=1,
    statements=(
        # Times are microseconds since 1970. AUTOINCREMENT, so that no id is ever used again.
        """
        CREATE TABLE messages (
            id           INTEGER PRIMARY KEY AUTOINCREMENT,
            subscription TEXT NOT NULL,
            attributes   TEXT NOT NULL,                -- JSON object of strings
            data         BLOB NOT NULL,
            published_at INTEGER NOT NULL,
            due_at       INTEGER NOT NULL,             -- not delivered before
            attempts     INTEGER NOT NULL DEFAULT 0,   -- deliveries begun
            leased       INTEGER NOT NULL DEFAULT 0    -- 1 while a delivery is in flight
        )
        """,
        "CREATE INDEX due_messages ON messages (due_at) WHERE leased = 0",
        "CREATE INDEX message_ages ON messages (published_at)",
        """
        CREATE TABLE dead_letters (
            id           INTEGER PRIMARY KEY,          -- of the message that died
            attributes   TEXT NOT NULL,
            data         BLOB NOT NULL,
            published_at INTEGER NOT NULL,
            died_at      INTEGER NOT NULL,
            attempts     INTEGER NOT NULL,
            reason       TEXT NOT NULL,                -- the last refusal
            notice_id    INTEGER NOT NULL,             -- its message on `dead-letter`
            replayed_at  INTEGER
        )
        """,
    ),
)

_INSERT = """
    INSERT INTO messages (subscription, attributes, data, published_at, due_at)
    VALUES (?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Message:
    """A message under lease; `attempt` is the number of this delivery and starts at 1."""

    id: int
    subscription: str
    attributes: dict[str, str]
    data: bytes
    published_at: datetime
    attempt: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up after `attempts` deliveries, and is kept."""

    id: int
    attributes: dict[str, str]
    published_at: datetime
    died_at: datetime
    attempts: int
    reason: str
    replayed_at: datetime | None


# --- How a delivery ends. -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Done: the message goes."""

    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """To be delivered again, not before `due_at`."""

    id: int
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Unreached:
    """Never arrived, so it was no delivery: due at once, and not counted."""

    id: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """No more deliveries: the message becomes a dead letter."""

    id: int
    reason: str


Outcome = Acknowledged | Refused | Unreached | GivenUp


class QueueStore:
    """The queue's table work. Every method may raise Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- For publishers ---------------------------------------------------------------------------

    async def publish(self, attributes: dict[str, str], data: bytes, now: datetime) -> str:
        """Enqueue for the worker, fsynced; the message's id."""
        row = _new_message(CLASSIFY, attributes, data, now)

        def insert(connection: sqlite3.Connection) -> str:
            return str(connection.execute(_INSERT, row).lastrowid)

        return await self._database.write(insert, durable=True)

    async def waiting(self) -> tuple[int, datetime | None]:
        """How many messages wait for the worker, and when the oldest was published."""

        def count(connection: sqlite3.Connection) -> tuple[int, datetime | None]:
            number, oldest = connection.execute(
                "SELECT count(*), min(published_at) FROM messages WHERE subscription = ?",
                (CLASSIFY,),
            ).fetchone()
            return number, None if oldest is None else from_micros(oldest)

        return await self._database.read(count)

    async def ping(self) -> None:
        await self._database.read(lambda connection: connection.execute("SELECT 1 FROM messages"))

    # --- For the owner ----------------------------------------------------------------------------

    async def void_leases(self) -> int:
        """Free what a dead predecessor had in flight; the number of messages freed.

        Their deliveries count: the worker may have had them.
        """

        def void(connection: sqlite3.Connection) -> int:
            return connection.execute("UPDATE messages SET leased = 0 WHERE leased = 1").rowcount

        return await self._database.write(void, durable=False)

    async def turn(self, outcomes: Sequence[Outcome], limit: int, now: datetime) -> list[Message]:
        """Record how deliveries ended and begin at most `limit` others: one transaction.

        Each message returned is leased and its attempt is counted, before it is delivered.
        """

        def work(connection: sqlite3.Connection) -> list[Message]:
            for outcome in outcomes:
                _settle(connection, outcome, now)
            return _lease(connection, limit, now) if limit > 0 else []

        return await self._database.write(work, durable=False)

    async def look(self, seen: int) -> tuple[int, datetime | None]:
        """The database's version, and when the next free message is due.

        The version changes with every commit, here or in another process. While it is still `seen`
        nothing is looked up and None is returned: this is cheap enough to ask every few
        milliseconds.
        """

        def look(connection: sqlite3.Connection) -> tuple[int, datetime | None]:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version == seen:
                return version, None
            (due,) = connection.execute(
                "SELECT min(due_at) FROM messages WHERE leased = 0"
            ).fetchone()
            return version, None if due is None else from_micros(due)

        return await self._database.read(look)

    async def expire(self, retention: timedelta, now: datetime) -> list[DeadLetter]:
        """Give up the messages that are older than `retention`; the dead letters made of them.

        What is left on the dead-letter subscription is dropped: its dead letter is kept already.
        """
        cutoff = to_micros(now - retention)

        def expire(connection: sqlite3.Connection) -> list[DeadLetter]:
            connection.execute(
                "DELETE FROM messages WHERE leased = 0 AND published_at < ? AND subscription = ?",
                (cutoff, DEAD_LETTER),
            )
            rows = connection.execute(
                "SELECT id FROM messages WHERE leased = 0 AND published_at < ?", (cutoff,)
            ).fetchall()
            for (id_,) in rows:
                _give_up(connection, id_, "older than the retention", now)
            return [letter for (id_,) in rows for letter in _dead_letters(connection, id_)]

        return await self._database.write(expire, durable=False)

    # --- Dead letters -----------------------------------------------------------------------------

    async def dead_letters(self, *, replayed: bool = False) -> list[DeadLetter]:
        """Those kept, oldest first; with `replayed` also those that were put back."""
        letters = await self._database.read(_dead_letters)
        return [letter for letter in letters if replayed or letter.replayed_at is None]

    async def replay(self, ids: Iterable[int], now: datetime) -> list[int]:
        """Put dead letters back for the worker, as new messages; the ids that were there.

        One that was replayed before and died again has another id: an id is replayed once.
        """
        wanted = list(ids)

        def replay(connection: sqlite3.Connection) -> list[int]:
            return [id_ for id_ in wanted if _replay(connection, id_, now)]

        return await self._database.write(replay, durable=True)


def _new_message(
    subscription: str, attributes: dict[str, str], data: bytes, now: datetime
) -> tuple[object, ...]:
    micros = to_micros(now)
    return (subscription, json.dumps(attributes), data, micros, micros)


def _lease(connection: sqlite3.Connection, limit: int, now: datetime) -> list[Message]:
    rows = connection.execute(
        """
        SELECT id, subscription, attributes, data, published_at, attempts + 1 FROM messages
        WHERE leased = 0 AND due_at <= ? ORDER BY due_at LIMIT ?
        """,
        (to_micros(now), limit),
    ).fetchall()
    connection.executemany(
        "UPDATE messages SET leased = 1, attempts = attempts + 1 WHERE id = ?",
        [(row[0],) for row in rows],
    )
    return [
        Message(id_, subscription, json.loads(attributes), data, from_micros(published), attempt)
        for id_, subscription, attributes, data, published, attempt in rows
    ]


def _settle(connection: sqlite3.Connection, outcome: Outcome, now: datetime) -> None:
    match outcome:
        case Acknowledged(id_):
            connection.execute("DELETE FROM messages WHERE id = ?", (id_,))
        case Refused(id_, due_at):
            connection.execute(
                "UPDATE messages SET leased = 0, due_at = ? WHERE id = ?", (to_micros(due_at), id_)
            )
        case Unreached(id_):
            connection.execute(
                "UPDATE messages SET leased = 0, attempts = attempts - 1 WHERE id = ?", (id_,)
            )
        case GivenUp(id_, reason):
            _give_up(connection, id_, reason, now)


def _give_up(connection: sqlite3.Connection, id_: int, reason: str, now: datetime) -> None:
    """Keep the message as a dead letter and tell the dead-letter subscription."""
    row = connection.execute(
        "DELETE FROM messages WHERE id = ? RETURNING attributes, data, published_at, attempts",
        (id_,),
    ).fetchone()
    if row is None:
        return
    attributes, data, published_at, attempts = row
    source = {
        DEAD_LETTER_DELIVERY_COUNT: str(attempts),
        DEAD_LETTER_SUBSCRIPTION: CLASSIFY,
        DEAD_LETTER_PROJECT: PROJECT,
        DEAD_LETTER_PUBLISH_TIME: rfc3339(from_micros(published_at)),
    }
    notice = _new_message(DEAD_LETTER, json.loads(attributes) | source, data, now)
    notice_id = connection.execute(_INSERT, notice).lastrowid
    connection.execute(
        """
        INSERT INTO dead_letters
            (id, attributes, data, published_at, died_at, attempts, reason, notice_id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (id_, attributes, data, published_at, to_micros(now), attempts, reason, notice_id),
    )


def _replay(connection: sqlite3.Connection, id_: int, now: datetime) -> bool:
    row = connection.execute(
        """
        UPDATE dead_letters SET replayed_at = ? WHERE id = ? AND replayed_at IS NULL
        RETURNING attributes, data, notice_id
        """,
        (to_micros(now), id_),
    ).fetchone()
    if row is None:
        return False
    attributes, data, notice_id = row
    # News of the death that has not gone out yet would fail the record of the new attempt.
    connection.execute("DELETE FROM messages WHERE id = ? AND leased = 0", (notice_id,))
    connection.execute(_INSERT, _new_message(CLASSIFY, json.loads(attributes), data, now))
    return True


def _dead_letters(connection: sqlite3.Connection, id_: int | None = None) -> list[DeadLetter]:
    rows: list[tuple[Any, ...]] = connection.execute(
        """
        SELECT id, attributes, published_at, died_at, attempts, reason, replayed_at
        FROM dead_letters WHERE ?1 IS NULL OR id = ?1 ORDER BY id
        """,
        (id_,),
    ).fetchall()
    return [
        DeadLetter(
            id=letter,
            attributes=json.loads(attributes),
            published_at=from_micros(published_at),
            died_at=from_micros(died_at),
            attempts=attempts,
            reason=reason,
            replayed_at=None if replayed_at is None else from_micros(replayed_at),
        )
        for letter, attributes, published_at, died_at, attempts, reason, replayed_at in rows
    ]
