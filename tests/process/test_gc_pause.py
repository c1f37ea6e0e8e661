"""The garbage collector pauses while a process imports its modules, and only then."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT

# Runs the module given as `python -m` does, until it serves.
PROGRAM = """
import gc, runpy, sys
import uvicorn

class Running(Exception):
    pass

def run(server):
    raise Running

uvicorn.Server.run = run
paused = []
sys.addaudithook(
    lambda event, arguments: paused.append(not gc.isenabled())
    if event == "import" and arguments[0] == "core.settings" else None
)
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except Running:
    pass
print(paused, gc.isenabled(), gc.get_freeze_count() > 20_000)
"""


def outcome(tmp_path: Path, *arguments: str, descriptors: tuple[int, ...] = ()) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env={"DATA_DIR": str(tmp_path / "data"), "PATH": ""},
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("service", ["app", "worker"])
def test_service_collects_garbage_once_it_serves(tmp_path: Path, service: str) -> None:
    assert outcome(tmp_path, service) == "[True] True True"


def test_classifier_process_collects_garbage_once_it_serves(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        number = theirs.fileno()
        options = ("--capacity", "1", "--max-pixels", "100", "--labels-per-image", "1")
        found = outcome(
            tmp_path, "worker.inference.process", str(number), *options, descriptors=(number,)
        )
    assert found == "[] True True"
