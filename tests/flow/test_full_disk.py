"""The service on a disk that is really full: a small tmpfs."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.disk_space import RESERVE
from tests.support.pictures import picture, sha256
from tests.support.requirements import MOUNTS
from tests.support.stack import Stack, until

MIB = 1024 * 1024
SIZE = RESERVE + 16 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted folder of `SIZE` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        MOUNTS.absent()
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Write a file that leaves this many bytes of the disk free."""
    found = os.statvfs(folder)
    file = folder / "glimpse.log.filler"
    file.write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - leave)))
    return file


def test_full_disk_refuses_uploads_finishes_others_and_recovers_without_a_restart(
    tmp_path: Path, small_disk: Path, colour_bundle: Path
) -> None:
    settings = {"DATA_DIR": small_disk, "MAX_BACKOFF_SECONDS": 1}
    with Stack(tmp_path / "stack", colour_bundle, **settings) as stack:
        accepted = [picture(seed=seed) for seed in range(3)]
        stack.stop("queue")
        for image in accepted:
            assert stack.upload(image).status_code == 202
        filler = fill(small_disk, leave=RESERVE // 2)
        refused = stack.upload(picture(seed=50))
        assert (refused.status_code, refused.json()["code"]) == (503, "disk_full")
        until(lambda: stack.api.get("/ready").status_code == 503, "not ready")
        checks = stack.api.get("/ready").json()["checks"]
        assert checks["blobs"].startswith("disk full")
        # What was accepted is labelled from the reserve.
        stack.start("queue")
        stack.results([sha256(image) for image in accepted])

        # Now nothing can be written at all.
        filler.unlink()
        filler = fill(small_disk, leave=0)
        for seed in range(60, 70):
            refused = stack.upload(picture(seed=seed))
            assert (refused.status_code, refused.json()["code"]) == (503, "disk_full")
        assert stack.api.get(f"/what/status/{sha256(accepted[0])}").status_code == 200

        filler.unlink()
        until(lambda: stack.api.get("/ready").status_code == 200, "ready again")
        image = picture(seed=60)
        assert stack.upload(image).status_code == 202
        stack.result(sha256(image))
        assert all(process.poll() is None for process in stack.processes.values())
