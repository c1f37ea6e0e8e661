"""The comparison as a command."""

import os
import subprocess
import sys

from benchmarks.environments import pins
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


def test_every_package_that_the_classifier_loads_is_pinned() -> None:
    """The peers' environments have no package that the pins do not name."""
    show = (
        "import importlib.metadata, sys\n"
        "before = set(sys.modules)\n"
        "import core.bundles.bundle, worker.inference.classifier\n"
        "packages = importlib.metadata.packages_distributions()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules.keys() - before}\n"
        "print(*{package for name in loaded for package in packages.get(name, ())})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pinned = {pin.partition("==")[0] for pin in pins("classifier")}
    assert {name.replace("_", "-") for name in done.stdout.split()} <= pinned
