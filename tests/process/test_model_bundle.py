"""A bundle's checksums, as sha256sum reads and writes them."""

import shutil
import subprocess
from pathlib import Path

from core.bundles.bundle import read_bundle
from tests.support.bundles import write_colour_bundle
from tests.support.requirements import SHA256SUM

SUMMED = ("model.onnx", "model.json", "labels.txt")


def test_the_sums_are_sha256sum_s_own_format(tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        SHA256SUM.absent()
    folder = write_colour_bundle(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    by_tool = subprocess.run(
        ["sha256sum", "--binary", *SUMMED], cwd=folder, check=True, capture_output=True
    ).stdout
    before = read_bundle(folder).identity
    (folder / "SHA256SUMS").write_bytes(by_tool)
    assert read_bundle(folder).identity == before
