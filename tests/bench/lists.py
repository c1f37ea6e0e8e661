"""What a page of `GET /api/v1/images` costs with few and with many records: run it by

    python -m tests.bench.lists [--records 1000000]

It fills a database of the embedded backend with that many successes, and reads pages of 50 by each
index, at the start, in the middle and at the end of the list.
"""

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.backends import Backend, open_backend
from core.backends.embedded import records as store
from core.backends.embedded.timestamps import to_micros
from core.domain.record_lists import RecordFilter
from core.domain.records import Status
from tests.support.settings import isolated_settings

MODEL = "colours@0123456789ab"
PAGE, ROUNDS = 50, 200
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_RECORDS = """
    INSERT INTO records (tenant, image_hash, model, status, annotations, categories, confident,
                         attempts, token, created_at, updated_at, submitted_at, sort_key)
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?1),
         made (n, hash, at) AS (SELECT n, lower(hex(randomblob(32))), ?2 + 1000000 * n FROM numbers)
    SELECT 'public', hash, ?3, 'success',
           json_array(json_object('index', 1, 'label', 'label ' || (n % 1000), 'confidence', 0.7),
                      json_object('index', 2, 'label', 'label ' || (n % 999), 'confidence', 0.2)),
           json_array(json_object('index', 1, 'label', 'all', 'confidence', 0.99)),
           1, 1, 1, at, at, at,
           printf('%016d', 9999999999999999 - at) || '-' || substr(hash, -20) || substr(?3, -12)
    FROM made
"""


def fill(path: Path, count: int) -> None:
    """Store `count` successes, one for each second, with the terms of their labels."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(_RECORDS, (count, to_micros(BEGIN), MODEL))
        for statement in store.TERMS_OF_EXISTING:
            connection.execute(statement)
        connection.execute("COMMIT")


async def measure(backend: Backend, wanted: RecordFilter) -> float:
    """Milliseconds for a page, the median."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await backend.records.list(wanted, PAGE)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


async def run(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = isolated_settings(data_dir=Path(folder))
        async with open_backend(settings):
            pass
        await asyncio.to_thread(fill, Path(folder) / "records.db", count)
        middle = BEGIN + timedelta(seconds=count // 2 + PAGE)
        lists = {
            "newest": RecordFilter("public"),
            "middle": RecordFilter("public", before=middle),
            "label": RecordFilter("public", label="label 7"),
            "category": RecordFilter("public", category="all", min_confidence=0.9),
            "category, middle": RecordFilter("public", category="all", before=middle),
            "model": RecordFilter("public", model=MODEL),
            "success": RecordFilter("public", status=Status.SUCCESS),
        }
        async with open_backend(settings) as backend:
            return {name: await measure(backend, wanted) for name, wanted in lists.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    most: int = parser.parse_args().records
    few, many = asyncio.run(run(100)), asyncio.run(run(most))
    print(f"{'page of 50':<20}{'100':>10}{most:>12,}   ratio")
    for name, before in few.items():
        print(f"{name:<20}{before:>7.2f} ms{many[name]:>9.2f} ms{many[name] / before:>8.2f}")


if __name__ == "__main__":
    main()
