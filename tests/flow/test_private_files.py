"""Files in the data folder belong to the user who runs Glimpse."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.batches import archive
from tests.support.pictures import picture, sha256
from tests.support.stack import Stack


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_no_file_of_a_running_service_is_open_to_other_users(
    tmp_path: Path, colour_bundle: Path
) -> None:
    data = tmp_path / "stack" / "data"
    data.mkdir(mode=0o755, parents=True)
    with Stack(tmp_path / "stack", colour_bundle) as stack:
        stack.make_key("--scopes", "all")
        image = picture()
        stack.upload(image)
        stack.result(sha256(image))
        batch = archive([("a.jpg", picture(seed=2)), ("b.jpg", b"none")])
        answer = stack.api.post(
            "/api/v1/jobs/batch-predict", content=batch, headers={"Content-Type": "application/zip"}
        )
        assert answer.status_code == 202, answer.text
        stack.result(sha256(picture(seed=2)))
        paths = [data, *data.rglob("*")]
        modes = {str(path.relative_to(data)): stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert len(modes) > 12
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
