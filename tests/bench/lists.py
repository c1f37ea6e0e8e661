"""What a page of `GET /api/v1/images` costs with few and with many records: run it by

    python -m tests.bench.lists [--records 1000000]

It fills a database of the embedded backend with that many successes, and reads pages of 50 by each
index, at the start, in the middle and at the end of the list.
"""

import argparse
import asyncio
import random
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.backends import Backend, open_backend
from core.backends.embedded import records as store
from core.domain.record_lists import RecordFilter
from core.domain.records import Annotation, Record, RecordKey, Status, new_record
from core.settings import Settings

LABELS = [f"label {number}" for number in range(1000)]
MODEL = "colours@0123456789ab"
PAGE, ROUNDS, BATCH = 50, 200, 10_000
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def success(number: int, rng: random.Random) -> Record:
    key = RecordKey("public", rng.randbytes(32).hex(), MODEL)
    record = new_record(key, BEGIN + timedelta(seconds=number))
    names = rng.sample(LABELS, 5)
    shares = (0.7, 0.15, 0.05, 0.02, 0.005)
    labels = tuple(Annotation(n + 1, names[n], shares[n]) for n in range(5))
    categories = (Annotation(1, f"category {rng.randrange(20)}", 0.8), Annotation(2, "all", 0.99))
    return replace(record, status=Status.SUCCESS, annotations=labels, categories=categories)


def fill(path: Path, count: int) -> None:
    rng = random.Random(7)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for begin in range(0, count, BATCH):
            found = [success(number, rng) for number in range(begin, min(begin + BATCH, count))]
            connection.execute("BEGIN")
            connection.executemany(
                store._INSERT,
                [
                    (*store._key_of(each.key), *store._state_of(each), each.sort_key)
                    for each in found
                ],
            )
            connection.executemany(
                store._INSERT_TERM, [row for each in found for row in store._term_rows(each)]
            )
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
        settings = Settings(_env_file=None, data_dir=Path(folder))
        async with open_backend(settings):
            pass
        await asyncio.to_thread(fill, Path(folder) / "records.db", count)
        middle = BEGIN + timedelta(seconds=count // 2 + PAGE)
        lists = {
            "newest": RecordFilter("public"),
            "middle": RecordFilter("public", before=middle),
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
