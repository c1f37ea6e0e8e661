"""How the absence of a Docker engine is reported, and what its containers mount."""

import json
from pathlib import Path
from typing import Any

import pytest

from compose import docker
from core.settings import DEFAULT_BUNDLE
from tests.support.settings import isolated_settings


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


def mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **uris: Any
) -> dict[str, object] | None:
    """The settings that the containers of the services get for these models."""
    monkeypatch.setattr(docker, "BUNDLES", tmp_path / "bundles")
    monkeypatch.setattr(docker, "MOUNTS", tmp_path / "bundles/.compose.json")
    (tmp_path / "bundles/vit").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    files = docker.write_mounts(isolated_settings(**uris))
    assert files == [part for part in map(Path, docker.command("up", more=files)) if part in files]
    if not files:
        return None
    services = json.loads(files[0].read_text())["services"]
    assert services["api"] == services["worker"]
    return dict(services["worker"])


def test_containers_mount_the_folders_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, vit = str(tmp_path / "mine"), str(tmp_path / "bundles/vit")
    extra = (mine, vit, "gs://bucket/folder", str(tmp_path / "absent"))
    service = mounted(tmp_path, monkeypatch, model_uri=mine, extra_model_uris=extra)
    assert service is not None
    assert service["volumes"] == [
        {"type": "bind", "source": mine, "target": mine, "read_only": True}
    ]
    assert service["environment"] == {"MODEL_URI": mine, "EXTRA_MODEL_URIS": ",".join(extra)}


def test_relative_folder_is_one_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = mounted(tmp_path, monkeypatch, extra_model_uris=("examples",))
    assert service is not None
    assert service["environment"] == {"EXTRA_MODEL_URIS": str(docker.ROOT / "examples")}


def test_default_model_and_bundles_need_no_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = (str(tmp_path / "bundles/vit"), "gs://bucket/folder")
    service = mounted(tmp_path, monkeypatch, model_uri=str(DEFAULT_BUNDLE), extra_model_uris=extra)
    assert service is None
