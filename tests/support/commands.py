"""Runs modules of the project as commands."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT


def run_module(
    module: str, folder: Path, *arguments: str, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module` in `folder`, with data in `folder/data`, and wait until it ends.

    It has only the given settings.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(folder / "data"),
    }
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
