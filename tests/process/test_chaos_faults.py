"""Tests of the faults of the chaos experiment."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.support.stack import ROOT, Stack, until

_STORE = """
import os, sys
from pathlib import Path
from core.backends.embedded.blobs import _put
from tests.support.pictures import sha256
root = Path(sys.argv[1])
while True:
    data = os.urandom(64)
    try:
        _put(root, root / "public" / sha256(data)[:2] / sha256(data), data)
    except OSError:
        pass
"""


@contextmanager
def storing(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stores images continuously."""
    with subprocess.Popen([sys.executable, "-c", _STORE, str(folder)], cwd=ROOT) as process:
        try:
            until(lambda: any(folder.glob("*/*/*")), "the first image")
            yield process
        finally:
            process.kill()


def test_images_are_taken_away_and_given_back_while_others_come(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time may pass between the two steps."""
    write_bytes, rename = Path.write_bytes, Path.rename

    def write_late(path: Path, data: bytes) -> int:
        time.sleep(0.1)
        return write_bytes(path, data)

    def rename_late(path: Path, target: Path) -> Path:
        time.sleep(0.1)
        return rename(path, target)

    monkeypatch.setattr(Path, "write_bytes", write_late)
    monkeypatch.setattr(Path, "rename", rename_late)
    monkeypatch.setattr(faults, "LONGEST_OUTAGE", 0.2)
    folder, stack = tmp_path / "blobs", Stack(tmp_path, colour_bundle)
    with storing(folder) as process:
        stack.processes["api"] = process
        before = {path.name for path in folder.glob("*/*/*") if not path.name.startswith(".")}
        faults._take_away(stack, folder, random.Random(1))
        assert before <= {path.name for path in folder.glob("*/*/*")}
    stack.api.close()
