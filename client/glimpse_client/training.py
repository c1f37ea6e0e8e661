"""Training a model on a folder with one folder for each label."""

import secrets
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from glimpse_client.flows import Call, Flow, Request, Response
from glimpse_client.sources import Source, find_images
from glimpse_client.types import Job, job_of

JOBS = "/api/v1/jobs"


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


def _pack(folder: Path, archive: Path) -> None:
    """Write a zip of the images, without compression. Blocks. Raises OSError, ValueError."""
    labels = sorted(each for each in folder.iterdir() if each.is_dir())
    if not labels:
        raise ValueError(f"{folder} has no folders: make one for each label")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for label in labels:
            for found in find_images([label], recursive=True):
                target.write(found.path, f"{label.name}/{found.name}")
