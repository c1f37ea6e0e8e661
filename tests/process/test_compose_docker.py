"""How the absence of a Docker engine is reported."""

from pathlib import Path

import pytest

from compose import docker


@pytest.mark.parametrize(
    ("script", "lacks"),
    [
        (None, ["Docker is not installed."]),
        ("exit 1", ["No Docker engine is running."]),
        ('test "$1" = info', ["The compose plugin of Docker is not installed"]),
        ("exit 0", []),
    ],
)
def test_engine_is_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, lacks: list[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    found = docker.missing()
    assert len(found) == len(lacks)
    assert all(expected in sentence for expected, sentence in zip(lacks, found, strict=True))
