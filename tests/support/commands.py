"""The project's own modules as commands of their own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT


def run_module(
    module: str, folder: Path, *arguments: str, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module` in `folder`, its data in `folder/data`, and wait for its end.

    It has the settings given here and no others.
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
