"""What the push queue remembers: messages on the channels of `core.domain.channels`.

A message that is given up moves to the dead letters' channel, from where the worker takes it
into the keeping of `core.ports.DeadLetterStore`. It stays there until the worker has.

Publishers insert from their own processes; one queue process, the owner, leases, settles and
deletes. Only a publication is fsynced: it is a promise. A power loss may undo the
owner's newest bookkeeping, and then a message is delivered again with a smaller attempt number,
which at-least-once delivery allows anyway; the death of every process undoes nothing.
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
        # Times are microseconds since 1970. AUTOINCREMENT, so that no id is ever used again.
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

# What a `Message` is made of, but the number of its delivery.
_MESSAGE = "id, channel, attributes, data, published_at"
_INSERT = """
    INSERT INTO messages (channel, attributes, data, published_at, due_at)
    VALUES (?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Message:
    """A message under lease; `attempt` is the number of this delivery and starts at 1."""

    id: int
    channel: Channel
    attributes: dict[str, str]
    data: bytes
    published_at: datetime
    attempt: int


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
    """No more deliveries: the message becomes a dead letter, because of `reason`."""

    id: int
    reason: str


Outcome = Acknowledged | Refused | Unreached | GivenUp


@dataclass(frozen=True, slots=True)
class Room:
    """At most `size` more deliveries of these channels together, those of the first preferred."""

    size: int
    channels: Sequence[Channel]


class QueueStore:
    """The queue's table work. Every method may raise Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- For publishers ---------------------------------------------------------------------------

    async def publish(
        self, channel: Channel, attributes: dict[str, str], data: bytes, now: datetime
    ) -> str:
        """Enqueue for the worker, fsynced; the message's id."""
        row = _new_message(channel, attributes, data, now)

        def insert(connection: sqlite3.Connection) -> str:
            return str(connection.execute(_INSERT, row).lastrowid)

        return await self._database.write(insert, durable=True)

    async def waiting(self) -> tuple[int, datetime | None]:
        """How many images wait for the worker, and when the oldest was published."""

        def count(connection: sqlite3.Connection) -> tuple[int, datetime | None]:
            number, oldest = connection.execute(
                "SELECT count(*), min(published_at) FROM messages WHERE channel IN (?, ?, ?)",
                [channel.name for channel in IMAGES.values()],
            ).fetchone()
            return number, moment_or_none(oldest)

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

    async def turn(
        self, outcomes: Sequence[Outcome], rooms: Sequence[Room], now: datetime
    ) -> list[Message]:
        """Record how deliveries ended and begin as many others as there is room: one transaction.

        Each message returned is leased and its attempt is counted, before it is delivered.
        """

        def work(connection: sqlite3.Connection) -> list[Message]:
            for outcome in outcomes:
                _settle(connection, outcome, now)
            return [message for room in rooms for message in _lease(connection, room, now)]

        return await self._database.write(work, durable=False)

    async def hasten(self, longest: Mapping[Channel, timedelta], now: datetime) -> int:
        """Make due what would wait longer than its channel's messages ever do; how many.

        No message is put off for longer: the clock has gone back since.
        """
        latest = [(to_micros(now), c.name, to_micros(now + wait)) for c, wait in longest.items()]

        def hasten(connection: sqlite3.Connection) -> int:
            return connection.executemany(
                "UPDATE messages SET due_at = ? WHERE leased = 0 AND channel = ? AND due_at > ?",
                latest,
            ).rowcount

        return await self._database.write(hasten, durable=False)

    async def look(self, seen: int) -> tuple[int, Mapping[Channel, datetime] | None]:
        """The database's version, and when the next free message of each channel is due.

        The version changes with every commit, here or in another process. While it is still `seen`
        nothing is looked up and None is returned: this is cheap enough to ask every few
        milliseconds.
        """

        def look(connection: sqlite3.Connection) -> tuple[int, dict[Channel, datetime] | None]:
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

        return await self._database.read(look)

    async def expire(self, channel: Channel, retention: timedelta, now: datetime) -> list[Message]:
        """Give up the channel's messages that are older than `retention`; those given up."""
        cutoff = to_micros(now - retention)

        def expire(connection: sqlite3.Connection) -> list[Message]:
            rows = connection.execute(
                f"SELECT {_MESSAGE}, attempts FROM messages"  # noqa: S608 - constants, as below
                " WHERE leased = 0 AND published_at < ? AND channel = ?",
                (cutoff, channel.name),
            ).fetchall()
            for row in rows:
                _give_up(connection, row[0], EXPIRED, now)
            return [_message_of(row) for row in rows]

        return await self._database.write(expire, durable=False)


def _new_message(
    channel: Channel, attributes: dict[str, str], data: bytes, now: datetime
) -> tuple[object, ...]:
    micros = to_micros(now)
    return (channel.name, json.dumps(attributes), data, micros, micros)


def _lease(connection: sqlite3.Connection, room: Room, now: datetime) -> list[Message]:
    rows: list[tuple[Any, ...]] = []
    for channel in room.channels:
        if len(rows) < room.size:
            rows += connection.execute(
                f"SELECT {_MESSAGE}, attempts + 1 FROM messages"  # noqa: S608 - constants
                " WHERE leased = 0 AND channel = ? AND due_at <= ? ORDER BY due_at LIMIT ?",
                (channel.name, to_micros(now), room.size - len(rows)),
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
    """Move the message to the dead letters' channel."""
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
