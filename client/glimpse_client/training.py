"""Training a model on a folder with one folder for each label."""

import secrets
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from glimpse_client.flows import Call, Flow, Request, Response, nothing, request
from glimpse_client.sources import Source, find_images
from glimpse_client.types import Job, job_of

JOBS, MODELS = "/api/v1/jobs", "/api/v1/models"


def train_flow(
    folder: Path, name: str, base: str | None, activate: bool, idempotency_key: str | None
) -> Flow[Job]:
    """Send the images of the folder's folders, whose names are the labels."""
    with tempfile.TemporaryDirectory(prefix="glimpse-") as temporary:
        archive = Path(temporary) / "images.zip"
        yield Call(lambda: _pack(folder, archive))
        params: dict[str, Any] = {"name": name, "activate": "true" if activate else "false"}
        if base is not None:
            params["base"] = base
        response: Response = yield Request(
            "POST",
            f"{JOBS}/train-model/zip",
            params=params,
            headers={
                "content-type": "application/zip",
                "idempotency-key": idempotency_key or secrets.token_hex(16),
            },
            source=Source(archive.name, archive),
        )
    return job_of({"type": "train-model", **response.document})


def activate_flow(version: str) -> Flow[None]:
    """Let the name of the model mean this version."""
    name = version.partition("@")[0]
    path = f"{MODELS}/{name}/activate"
    return (yield from request("POST", path, nothing, json={"version": version}))


def delete_flow(name: str) -> Flow[None]:
    """Delete a trained model, or a version of it by its id."""
    return (yield from request("DELETE", f"{MODELS}/{name}", nothing))


def _pack(folder: Path, archive: Path) -> None:
    """Write a zip of the images, without compression. Blocks. Raises OSError, ValueError."""
    labels = sorted(each for each in folder.iterdir() if each.is_dir())
    if not labels:
        raise ValueError(f"{folder} has no folders: make one for each label")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for label in labels:
            for found in find_images([label], recursive=True):
                target.write(found.path, f"{label.name}/{found.name}")
