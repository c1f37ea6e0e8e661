"""One database that several processes open."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_many_processes_make_one_schema(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from core.backends.embedded.database import Database
from tests.unit.test_embedded_database import SCHEMA, put

async def main():
    database = await Database.open(Path(sys.argv[1]), SCHEMA)
    for number in range(20):
        await put(database, f"{sys.argv[2]}-{number}")
    await database.close()

asyncio.run(main())
"""
    path = tmp_path / "words.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(number)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for number in range(5)
    ]
    assert [process.wait(60) for process in processes] == [0] * 5
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (100,)
    finally:
        connection.close()
