"""The push queue's table: messages on the channels of `core.domain.channels`.

A message that has used up its deliveries, or is older than the retention, moves to the channel of
dead letters. The worker stores it in `core.ports.DeadLetterStore` and acknowledges it.

Publishers insert from their own processes. One queue process leases, updates and deletes. Only a
publication is fsynced, because it is a promise to a client. A power loss may undo the newest
updates of the queue process: then a message is delivered again with a smaller attempt number, which
at-least-once delivery allows. The death of every process undoes nothing.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from core.backends.embedded.database import Database, Schema
from core.backends.embedded.timestamps import from_micros, moment_or_none, to_micros
from core.clock import rfc3339
from core.domain.channels import ALL_CHANNELS, BY_NAME, DEAD_LETTERS, IMAGES, Channel
from core.domain.messages import (
    DEAD_LETTER_DELIVERY_COUNT,
    DEAD_LETTER_PROJECT,
    DEAD_LETTER_PUBLISH_TIME,
    DEAD_LETTER_REASON,
    DEAD_LETTER_SUBSCRIPTION,
)

PROJECT = "local"
PREFIX = "glimpse"

SCHEMA = Schema(
    version=3,
    statements=(
        # Times are microseconds since 1970. AUTOINCREMENT never uses an id again.
        """
        CREATE TABLE messages (
            id           INTEGER PRIMARY KEY AUTOINCREMENT,
            channel      TEXT NOT NULL,
            attributes   TEXT NOT NULL,                -- JSON object of strings
            data         BLOB NOT NULL,
            published_at INTEGER NOT NULL,
            due_at       INTEGER NOT NULL,             -- not delivered before
            attempts     INTEGER NOT NULL DEFAULT 0,   -- deliveries begun
            leased       INTEGER NOT NULL DEFAULT 0    -- 1 while a delivery is in flight
        )
        """,
        "CREATE INDEX due_messages ON messages (channel, due_at) WHERE leased = 0",
        "CREATE INDEX message_ages ON messages (published_at)",
    ),
)

EXPIRED = "older than the retention"

# The columns of a `Message`, except the number of its delivery.
_MESSAGE = "id, channel, attributes, data, published_at"
_INSERT = """
    INSERT INTO messages (channel, attributes, data, published_at, due_at)
    VALUES (?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Message:
    """A leased message. `attempt` is the number of this delivery, from 1."""

    id: int
    channel: Channel
    attributes: dict[str, str]
    data: bytes
    published_at: datetime
    attempt: int


# --- How a delivery ends. -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The worker is done with the message: it is deleted."""

    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The message is delivered again, not before `due_at`."""

    id: int
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The worker was not reached: the message is due at once, and the attempt does not count."""

    id: int


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """The message moves to the channel of dead letters, for `reason`."""

    id: int
    reason: str


Outcome = Acknowledged | Refused | Unreachable | DeadLettered


@dataclass(frozen=True, slots=True)
class Slots:
    """Up to `count` deliveries of messages on `channels`, in that order of preference."""

    count: int
    channels: Sequence[Channel]


class QueueStore:
    """The operations on the table. Every method may raise Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- For publishers ---------------------------------------------------------------------------

    async def publish(
        self, channel: Channel, attributes: dict[str, str], data: bytes, now: datetime
    ) -> str:
        """Enqueue a message, fsynced, and return its id."""
        row = _new_message(channel, attributes, data, now)

        def insert(connection: sqlite3.Connection) -> str:
            return str(connection.execute(_INSERT, row).lastrowid)

        return await self._database.write(insert, durable=True)

    async def backlog(self) -> tuple[int, datetime | None]:
        """The number of images that wait for the worker, and when the oldest was published."""

        def count(connection: sqlite3.Connection) -> tuple[int, datetime | None]:
            number, oldest = connection.execute(
                "SELECT count(*), min(published_at) FROM messages WHERE channel IN (?, ?, ?)",
                [channel.name for channel in IMAGES.values()],
            ).fetchone()
            return number, moment_or_none(oldest)

        return await self._database.read(count)

    async def ping(self) -> None:
        await self._database.read(lambda connection: connection.execute("SELECT 1 FROM messages"))

    # --- For the queue process --------------------------------------------------------------------

    async def release_leases(self) -> int:
        """Release the leases of an earlier queue process that died, and return their number.

        The deliveries count as attempts: the worker may have received them.
        """

        def release(connection: sqlite3.Connection) -> int:
            return connection.execute("UPDATE messages SET leased = 0 WHERE leased = 1").rowcount

        return await self._database.write(release, durable=False)

    async def record_and_lease(
        self, outcomes: Sequence[Outcome], slots: Sequence[Slots], now: datetime
    ) -> list[Message]:
        """Record how deliveries ended, and lease messages for free slots, in one transaction.

        The attempt of each leased message is counted before its delivery.
        """

        def work(connection: sqlite3.Connection) -> list[Message]:
            for outcome in outcomes:
                _record(connection, outcome, now)
            return [message for each in slots for message in _lease(connection, each, now)]

        return await self._database.write(work, durable=False)

    async def limit_delays(self, longest: Mapping[Channel, timedelta], now: datetime) -> int:
        """Make messages due that wait longer than the longest delay of their channel.

        That happens when the system clock is set back. Return the number of messages.
        """
        latest = [(to_micros(now), c.name, to_micros(now + wait)) for c, wait in longest.items()]

        def limit(connection: sqlite3.Connection) -> int:
            return connection.executemany(
                "UPDATE messages SET due_at = ? WHERE leased = 0 AND channel = ? AND due_at > ?",
                latest,
            ).rowcount

        return await self._database.write(limit, durable=False)

    async def due_times(self, seen: int) -> tuple[int, Mapping[Channel, datetime] | None]:
        """The database's version, and when the next free message of each channel is due.

        Every commit of any process changes the version. If it is still `seen`, the second value is
        None and nothing is looked up, so that polling every few milliseconds is cheap.
        """

        def look_up(connection: sqlite3.Connection) -> tuple[int, dict[Channel, datetime] | None]:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version == seen:
                return version, None
            due = {}
            for channel in ALL_CHANNELS:
                (moment,) = connection.execute(
                    "SELECT min(due_at) FROM messages WHERE leased = 0 AND channel = ?",
                    (channel.name,),
                ).fetchone()
                if moment is not None:
                    due[channel] = from_micros(moment)
            return version, due

        return await self._database.read(look_up)

    async def expire(self, channel: Channel, retention: timedelta, now: datetime) -> list[Message]:
        """Make dead letters of the channel's messages that are older than `retention`.

        Return these messages. A message in flight is left to its delivery.
        """
        cutoff = to_micros(now - retention)

        def expire(connection: sqlite3.Connection) -> list[Message]:
            rows = connection.execute(
                f"SELECT {_MESSAGE}, attempts FROM messages"
                " WHERE leased = 0 AND published_at < ? AND channel = ?",
                (cutoff, channel.name),
            ).fetchall()
            for row in rows:
                _dead_letter(connection, row[0], EXPIRED, now)
            return [_message_of(row) for row in rows]

        return await self._database.write(expire, durable=False)


def _new_message(
    channel: Channel, attributes: dict[str, str], data: bytes, now: datetime
) -> tuple[object, ...]:
    micros = to_micros(now)
    return (channel.name, json.dumps(attributes), data, micros, micros)


def _lease(connection: sqlite3.Connection, slots: Slots, now: datetime) -> list[Message]:
    rows: list[tuple[Any, ...]] = []
    for channel in slots.channels:
        if len(rows) < slots.count:
            rows += connection.execute(
                f"SELECT {_MESSAGE}, attempts + 1 FROM messages"
                " WHERE leased = 0 AND channel = ? AND due_at <= ? ORDER BY due_at LIMIT ?",
                (channel.name, to_micros(now), slots.count - len(rows)),
            ).fetchall()
    connection.executemany(
        "UPDATE messages SET leased = 1, attempts = attempts + 1 WHERE id = ?",
        [(row[0],) for row in rows],
    )
    return [_message_of(row) for row in rows]


def _message_of(row: tuple[Any, ...]) -> Message:
    id_, channel, attributes, data, published, attempt = row
    return Message(
        id_, BY_NAME[channel], json.loads(attributes), data, from_micros(published), attempt
    )


def _record(connection: sqlite3.Connection, outcome: Outcome, now: datetime) -> None:
    match outcome:
        case Acknowledged(id_):
            connection.execute("DELETE FROM messages WHERE id = ?", (id_,))
        case Refused(id_, due_at):
            connection.execute(
                "UPDATE messages SET leased = 0, due_at = ? WHERE id = ?", (to_micros(due_at), id_)
            )
        case Unreachable(id_):
            connection.execute(
                "UPDATE messages SET leased = 0, attempts = attempts - 1 WHERE id = ?", (id_,)
            )
        case DeadLettered(id_, reason):
            _dead_letter(connection, id_, reason, now)


def _dead_letter(connection: sqlite3.Connection, id_: int, reason: str, now: datetime) -> None:
    """Move the message to the channel of dead letters."""
    row = connection.execute(
        "DELETE FROM messages WHERE id = ?"
        " RETURNING channel, attributes, data, published_at, attempts",
        (id_,),
    ).fetchone()
    if row is None:
        return
    channel, attributes, data, published_at, attempts = row
    source = {
        DEAD_LETTER_DELIVERY_COUNT: str(attempts),
        DEAD_LETTER_SUBSCRIPTION: BY_NAME[channel].subscription(PREFIX),
        DEAD_LETTER_PROJECT: PROJECT,
        DEAD_LETTER_PUBLISH_TIME: rfc3339(from_micros(published_at)),
        DEAD_LETTER_REASON: reason,
    }
    notice = _new_message(DEAD_LETTERS, json.loads(attributes) | source, data, now)
    connection.execute(_INSERT, notice)
