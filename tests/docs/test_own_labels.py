"""docs/own-labels.md works as written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pictures import picture
from tests.support.requirements import CURL
from tests.support.stack import ROOT, Stack, until
from tests.support.training import BLUE, GREEN, RED

PAGE = (ROOT / "docs/own-labels.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines()]
FOLDERS = {"owl": RED, "robin": BLUE, "none": GREEN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the page, with drawn pictures, and a new photo."""
    folder = tmp_path_factory.mktemp("own-labels")
    for label, colour in FOLDERS.items():
        assert f"\n  {label}/" in PAGE
        (folder / "birds" / label).mkdir(parents=True)
        for seed in range(6):
            file = folder / "birds" / label / f"{seed}.jpg"
            file.write_bytes(picture(seed, colour, (24, 24)))
    (folder / "new-photo.jpg").write_bytes(picture(99, RED))
    return folder


@pytest.fixture
def stack(tmp_path: Path, colour_bundle: Path) -> Iterator[Stack]:
    with Stack(tmp_path, colour_bundle) as running:
        yield running


def run(line: str, stack: Stack, folder: Path) -> str:
    """The output of a line of the page, with the stack's port instead of the usual one."""
    command = line.replace("127.0.0.1:8080", f"127.0.0.1:{stack.api_port}")
    command = re.sub(r"^glimpse ", f"{sys.executable} -m glimpse_client.cli ", command)
    environment = {
        **os.environ,
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT / "client"),
        "GLIMPSE_URL": f"http://127.0.0.1:{stack.api_port}",
    }
    done = subprocess.run(
        command,
        check=False,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_commands_train_a_model_and_use_it(stack: Stack, folder: Path) -> None:
    train, label = [line for line in LINES if line.startswith("glimpse ")]
    version = run(train, stack, folder).strip()
    assert version.startswith("birds@")
    assert "owl" in run(label, stack, folder)


@pytest.mark.timeout(300)
def test_curl_trains_a_model_and_uses_it(stack: Stack, folder: Path) -> None:
    if shutil.which("curl") is None:
        CURL.absent()
    pack, train, show, classify = [line for line in LINES if not line.startswith("glimpse ")]
    run(pack, stack, folder)
    job = json.loads(run(train, stack, folder))
    path = f"/api/v1/jobs/{job['job_id']}"
    until(lambda: stack.api.get(path).json()["completed_at"], "the training ends")
    model = json.loads(run(show, stack, folder))
    (version,) = model["versions"]
    for field in re.findall(r"^- .*", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", field):
            assert name in version or name in version["labels"][0], name
    result = json.loads(run(classify, stack, folder))
    assert result["annotations"][0]["label"] == "owl"
    assert result["confident"] is True
