"""The release command as a process, and the processes that the stand-in for Cloud Run runs."""

import os
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping

from tests.support import gcloud
from tests.support.cloud_run import CloudRun
from tests.support.requirements import GCLOUD
from tests.support.stack import ROOT, Stack

REAL = os.environ.get("GLIMPSE_TEST_GCLOUD") == "real"
REGISTRY = "europe-west1-docker.pkg.dev/p/glimpse"


def image(name: str, version: int) -> str:
    """The image of a service."""
    return f"{REGISTRY}/{'api' if name == 'api' else 'worker'}@sha256:{version:064d}"


def install_gcloud(cloud: CloudRun) -> None:
    """The tests' own gcloud for `start`, or the real one. Skips the test if that is absent."""
    if not REAL:
        gcloud.install(cloud.folder / "bin")
    elif shutil.which("gcloud") is None:
        GCLOUD.absent()


def start(cloud: CloudRun, *arguments: str) -> subprocess.Popen[str]:
    """`python -m deploy.release` with these arguments."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDSDK_")}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.release", f"--journal={cloud.folder / 'j'}", *arguments],
        cwd=ROOT,
        env={
            **ours,
            **cloud.environment,
            "PATH": f"{cloud.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(cloud.folder / "summary.md"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and the output."""
    out, errors = process.communicate(timeout=300)
    return process.returncode, out + errors


class Instances:
    """A process for each image. It runs while its image gets requests.

    `versions` are stacks on the same data, by the number of the version. An image that loses its
    requests gets SIGTERM at once, while it still works on some of them.
    """

    def __init__(self, cloud: CloudRun, versions: Mapping[int, Stack]) -> None:
        self._cloud = cloud
        self._processes = {
            image(name, version): (stack, name)
            for version, stack in versions.items()
            for name in ("worker", "api")
        }
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        cloud.start, cloud.stop = self.start, self.stop

    def start(self, name: str) -> None:
        """Start the process of an image, unless it runs, and wait until it is ready."""
        stack, module = self._processes[name]
        with self._locks[name]:
            if module not in stack.processes:
                stack.start(module)
            self._cloud.backends[name] = f"http://127.0.0.1:{stack.port_of(module)}"

    def stop(self, name: str) -> None:
        """Send SIGTERM and wait for the end."""
        stack, module = self._processes[name]
        with self._locks[name]:
            stack.stop(module)
