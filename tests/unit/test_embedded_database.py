"""The threads of the database: shared commits, separate failures, schema versions, closing."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.backends import open_backend
from core.backends.embedded import records
from core.backends.embedded.database import Database, Schema
from core.domain.dead_letters import LetterFilter
from core.domain.job_codec import text_of_job
from core.domain.jobs import JobFilter, JobItem, JobKey, new_job
from core.domain.priority import Priority
from core.domain.record_lists import RecordFilter
from core.domain.records import Annotation, RecordKey, claim
from core.errors import Unavailable
from tests.support.records import delete_image
from tests.support.settings import isolated_settings

SCHEMA = Schema(1, ("CREATE TABLE words (word TEXT PRIMARY KEY)",))
# What `PRAGMA synchronous` returns: https://sqlite.org/pragma.html#pragma_synchronous
NORMAL, FULL = 1, 2


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "words.db", SCHEMA)
    try:
        yield opened
    finally:
        await opened.close()


def insert(word: str, connection: sqlite3.Connection) -> int:
    return connection.execute("INSERT INTO words VALUES (?)", (word,)).rowcount


async def put(database: Database, word: str, *, durable: bool = True) -> int:
    return await database.write(lambda connection: insert(word, connection), durable=durable)


async def words(database: Database) -> list[str]:
    return await database.read(
        lambda connection: [
            word for (word,) in connection.execute("SELECT word FROM words ORDER BY word")
        ]
    )


async def test_written_data_can_be_read_at_once(database: Database) -> None:
    for number in range(20):
        await put(database, f"{number:02}", durable=number % 2 == 0)
        assert len(await words(database)) == number + 1


@asynccontextmanager
async def writer_held(database: Database, statements: list[str]) -> AsyncIterator[None]:
    """Keeps the writer busy, so that the writes submitted inside form one batch.

    `statements` collects the SQL of that batch.
    """
    begun, held = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        begun.set()
        assert held.wait(30)
        connection.set_trace_callback(statements.append)

    first = asyncio.create_task(database.write(hold, durable=False))
    assert await asyncio.to_thread(begun.wait, 30), "the writer did not start"
    try:
        yield
        await asyncio.sleep(0)
    finally:
        held.set()
        await first


async def test_waiting_writes_share_a_transaction(database: Database) -> None:
    statements: list[str] = []
    async with writer_held(database, statements):
        others = [asyncio.create_task(put(database, str(number))) for number in range(10)]
    await asyncio.gather(*others)
    assert statements.count("COMMIT") == 2  # of the write that held the writer, and of the batch


@pytest.mark.parametrize(
    ("batch", "mode"),
    [
        ([True, False], FULL),
        ([False, True], FULL),
        ([False, False, True, False], FULL),
        ([True], FULL),
        ([False, False], NORMAL),
        ([False], NORMAL),
    ],
)
async def test_one_durable_write_syncs_its_whole_batch(
    database: Database, batch: list[bool], mode: int
) -> None:
    """P1: the caller of a durable write gets its answer after the fsync, in any batch."""
    modes: list[int] = []

    def note_mode(connection: sqlite3.Connection) -> None:
        modes.extend(connection.execute("PRAGMA synchronous").fetchone())

    statements: list[str] = []
    async with writer_held(database, statements):
        writes = [asyncio.create_task(database.write(note_mode, durable=each)) for each in batch]
    await asyncio.gather(*writes)
    assert statements.count("BEGIN IMMEDIATE") == 1
    assert modes == [mode] * len(batch)


async def test_failed_write_is_rolled_back_and_the_next_one_works(database: Database) -> None:
    def insert_and_fail(connection: sqlite3.Connection) -> None:
        insert("undone", connection)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await database.write(insert_and_fail, durable=True)
    assert await words(database) == []
    assert await put(database, "after") == 1
    assert await words(database) == ["after"]


async def test_failure_in_a_batch_concerns_its_caller_only(database: Database) -> None:
    def insert_and_fail(connection: sqlite3.Connection) -> None:
        insert("undone", connection)
        raise LookupError("mine")

    outcomes = await asyncio.gather(
        put(database, "a"),
        database.write(insert_and_fail, durable=True),
        put(database, "b"),
        put(database, "a"),
        database.write(lambda connection: connection.execute("SELECT nonsense"), durable=True),
        put(database, "c"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        int, LookupError, int, Unavailable, Unavailable, int,
    ]  # fmt: skip
    assert await words(database) == ["a", "b", "c"]


async def test_cursor_does_not_leave_its_thread(database: Database) -> None:
    """Freed on another thread, it would disturb a caller that runs the same statement there."""
    assert await database.read(lambda connection: connection.execute("SELECT 1")) is None
    rows = [(f"{number}",) for number in range(3)]
    for _ in range(2):  # alone, and in a batch
        written = await asyncio.gather(
            *(
                database.write(
                    lambda connection: connection.executemany(
                        "INSERT INTO words VALUES (?) ON CONFLICT DO NOTHING", rows
                    ),
                    durable=False,
                )
                for _ in range(20)
            )
        )
        assert written == [None] * 20
    assert await words(database) == ["0", "1", "2"]


async def test_failed_read_concerns_its_caller_only(database: Database) -> None:
    await put(database, "a")
    failed, read = await asyncio.gather(
        database.read(lambda connection: connection.execute("SELECT nonsense")),
        words(database),
        return_exceptions=True,
    )
    assert isinstance(failed, Unavailable)
    assert "nonsense" not in failed.detail  # no vendor error
    assert read == ["a"]


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(Unavailable):
        await database.read(lambda connection: insert("a", connection))
    assert await words(database) == []


async def test_cancelled_caller_does_not_stop_the_database(database: Database) -> None:
    callers = [asyncio.create_task(put(database, str(number))) for number in range(10)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert await put(database, "after") == 1


async def test_close_finishes_submitted_calls_and_refuses_later_ones(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "words.db", SCHEMA)
    before = {thread.name for thread in threading.enumerate()}
    assert {"words-writer", "words-reader"} <= before
    writes = [asyncio.create_task(put(database, str(number))) for number in range(300)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*writes) == [1] * 300
    assert not {"words-writer", "words-reader"} & {thread.name for thread in threading.enumerate()}
    with pytest.raises(Unavailable):
        await put(database, "late")
    with pytest.raises(Unavailable):
        await words(database)


async def test_older_schema_is_upgraded_step_by_step(tmp_path: Path) -> None:
    first = await Database.open(tmp_path / "words.db", SCHEMA)
    await put(first, "kept")
    await first.close()
    add = "ALTER TABLE words ADD COLUMN {} TEXT NOT NULL DEFAULT '{}'"
    third = Schema(
        version=SCHEMA.version + 2,
        statements=(),
        upgrades={
            SCHEMA.version: (add.format("second", "two"),),
            SCHEMA.version + 1: (add.format("third", "three"),),
        },
    )
    for _ in range(2):  # once
        database = await Database.open(tmp_path / "words.db", third)
        rows = await database.read(
            lambda connection: connection.execute("SELECT * FROM words").fetchall()
        )
        assert [row[-3:] for row in rows] == [("kept", "two", "three")]
        await database.close()
    # A file without a path of upgrades is not changed.
    torn = Schema(version=SCHEMA.version + 4, statements=(), upgrades={SCHEMA.version + 3: ()})
    with pytest.raises(Unavailable, match=f"schema version {third.version}"):
        await Database.open(tmp_path / "words.db", torn)


NEW_IN_6_TO_9 = ("claims", "output", "republished_at")  # columns of records


def statements_of_version_3() -> list[str]:
    """Version 3 had no categories, confidence, lists, claims; other sort keys; duplicates."""
    new = ("categories", "confident", "sort_key         TEXT", *NEW_IN_6_TO_9)
    statements = []
    for statement in records.SCHEMA.statements:
        if any(new in statement for new in ("record_terms", "INDEX records_by", "deletions")):
            continue
        old = "\n".join(
            line for line in statement.splitlines() if not line.strip().startswith(new)
        ).replace("sort_key", "position")
        if "TABLE job_items" in old:
            old = old.replace("PRIMARY KEY", "twin_of INTEGER, twins TEXT NOT NULL, PRIMARY KEY")
        statements.append(old)
    return statements


async def test_data_of_version_3_stays_readable(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "records.db"
    database = await Database.open(path, Schema(version=3, statements=statements_of_version_3()))
    key = RecordKey("public", "a" * 64, "colours@0123456789ab")
    now = datetime(2026, 11, 21, tzinfo=UTC)
    job = new_job(JobKey("public", "7" * 32), "", key.model, 2, now)
    job = replace(job, sealed=True)
    result = '[{"index": 1, "label": "red", "confidence": 0.75}]'

    def fill(connection: sqlite3.Connection) -> None:
        row = (key.tenant, key.image_hash, key.model, result)
        connection.execute(
            "INSERT INTO records VALUES"
            " (?, ?, ?, 'success', ?, NULL, 1, 1, NULL, 5, 6, 7, 'high', '')",
            row,
        )
        connection.execute(
            "INSERT INTO jobs VALUES ('public', ?, ?, 'pending', ?, '', 1, 5, ?)",
            (job.key.id, job.sort_key, job.type, text_of_job(job)),
        )
        for position, twin_of, twins in ((0, None, "[1]"), (1, 0, "[]")):
            connection.execute(
                "INSERT INTO job_items VALUES ('public', ?, ?, ?, '', '{}', 'open', NULL, ?, ?)",
                (job.key.id, position, key.image_hash, twin_of, twins),
            )
        connection.execute(
            "INSERT INTO dead_letters VALUES"
            " ('public', 'b', '1-b', 'code', 'detail', '{}', x'', 0, 10, 5, 6, NULL)"
        )

    await database.write(fill, durable=True)
    await database.close()
    async with open_backend(isolated_settings(data_dir=tmp_path / "data")) as backend:
        record = await backend.records.get(key)
        assert record is not None
        assert record.annotations == (Annotation(1, "red", 0.75),)
        assert (record.categories, record.confident) == ((), None)
        for wanted in (RecordFilter("public"), RecordFilter("public", label="red")):
            assert (await backend.records.list(wanted, 2)).records == [record]
        confident = RecordFilter("public", label="red", min_confidence=0.7)
        assert (await backend.records.list(confident, 2)).records == [record]
        await delete_image(backend.records, key.image)
        with closing(sqlite3.connect(path)) as connection:  # what is deleted leaves no label behind
            assert connection.execute("SELECT count(*) FROM record_terms").fetchone() == (0,)
        assert await backend.jobs.list(JobFilter("public"), 2) == [job]
        items = await backend.jobs.items(job.key, 3)
        assert items == [JobItem(position, key.image_hash) for position in (0, 1)]
        (letter,) = await backend.dead_letters.list(LetterFilter("public"), 2)
        assert letter.id == "b"


def statements_of_version_5() -> list[str]:
    """Version 5 did not count claims, and had no outputs and no deletions."""
    return [
        "\n".join(
            line for line in statement.splitlines() if not line.strip().startswith(NEW_IN_6_TO_9)
        )
        for statement in records.SCHEMA.statements
        if "deletions" not in statement
    ]


async def test_data_of_version_5_stays_readable(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "records.db"
    database = await Database.open(path, Schema(version=5, statements=statements_of_version_5()))
    key = RecordKey("public", "a" * 64, "colours@0123456789ab")
    await database.write(
        lambda connection: connection.execute(
            "INSERT INTO records VALUES (?, ?, ?, 'running', '[]', NULL, 3, 3, 9, 5, 6, 7, 'low',"
            " '', '[]', NULL, '1-a')",
            (key.tenant, key.image_hash, key.model),
        ),
        durable=True,
    )
    await database.close()
    async with open_backend(isolated_settings(data_dir=tmp_path / "data")) as backend:
        record = await backend.records.get(key)
        assert record is not None
        assert (record.attempts, record.claims, record.priority) == (3, 0, Priority.LOW)
        assert (record.output, record.republished_at) == ("", None)
        claimed = await backend.records.change(key, claim(timedelta(seconds=30)))
        assert claimed is not None
        assert (claimed.attempts, claimed.claims) == (4, 1)
        await delete_image(backend.records, key.image)
        assert await backend.records.deletion(key.image) is not None


@pytest.mark.parametrize("version", [1, 2, records.SCHEMA.version + 1])
async def test_data_of_other_versions_is_refused(tmp_path: Path, version: int) -> None:
    (tmp_path / "data").mkdir()
    other = Schema(version=version, statements=("CREATE TABLE records (tenant TEXT)",))
    await (await Database.open(tmp_path / "data" / "records.db", other)).close()
    needed = f"schema version {version}, this release needs {records.SCHEMA.version}"
    with pytest.raises(Unavailable, match=needed):
        async with open_backend(isolated_settings(data_dir=tmp_path / "data")):
            pass


async def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    first = await Database.open(tmp_path / "words.db", SCHEMA)
    await first.close()
    with pytest.raises(Unavailable, match="schema version 1"):
        await Database.open(tmp_path / "words.db", Schema(2, SCHEMA.statements))


async def test_file_that_is_not_a_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "words.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(Unavailable):
        await Database.open(tmp_path / "words.db", SCHEMA)


async def test_write_waits_for_the_lock_of_another_process(
    database: Database, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "words.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(put(database, "a"))
        for _ in range(20):
            assert await words(database) == []  # reads do not wait
        assert not writing.done()
        other.execute("COMMIT")
        assert await writing == 1
    finally:
        other.close()
