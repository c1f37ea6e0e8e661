"""The comparison as a command."""

import os
import subprocess
import sys

from tests.support.stack import ROOT


def test_comparison_without_redis_names_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        env={"PATH": "/nowhere", "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "apt-get install redis-server" in done.stderr
    assert not done.stdout
