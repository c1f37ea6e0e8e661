"""The third part of `make demo`: a model that is trained on labels of its own.

The images are drawn with a fixed seed, so that a second demonstration trains the same version and
finds every embedding stored.
"""

import io
import math
import random
import zipfile
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx2
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from compose.demo_batch import NOT_SURE, follow

NAME = "shapes"
IMAGES = 12  # training images for each label
SIZE = 160  # pixels
WAIT_SECONDS = 20  # longest wait for the label of a new image
NEW = 1000  # seeds from here on are of images that the model was not trained on

Point: TypeAlias = tuple[float, float]
# The corners of a shape with a radius of 1.
Outline: TypeAlias = Callable[[], list[Point]]


def _corners(count: int, inner: float = 1.0) -> list[Point]:
    """The corners of a regular polygon. Every other one has the radius `inner`."""
    turns = [(math.tau * n / count, inner if n % 2 else 1.0) for n in range(count)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for turn, radius in turns]


LABELS: dict[str, Outline] = {
    "circle": lambda: _corners(90),
    "square": lambda: _corners(4),
    "star": lambda: _corners(10, 0.42),
    "triangle": lambda: _corners(3),
}


def drawing(label: str, seed: int) -> bytes:
    """A JPEG of the shape in any colour, size, place and rotation, on a background with lines."""
    draw = random.Random(f"{label} {seed}")
    paper = draw.randrange(110, 256)
    image = Image.new("RGB", (SIZE, SIZE), (paper, paper, draw.randrange(110, 256)))
    pencil = ImageDraw.Draw(image)
    for _ in range(6):
        line = [draw.randrange(SIZE) for _ in range(4)]
        pencil.line(line, fill=tuple(draw.randrange(60, 220) for _ in range(3)), width=2)
    radius, turn = draw.uniform(0.22, 0.42) * SIZE, draw.uniform(0, math.tau)
    x, y = (draw.uniform(radius, SIZE - radius) for _ in range(2))
    corners = [
        (
            x + radius * (math.cos(turn) * right - math.sin(turn) * down),
            y + radius * (math.sin(turn) * right + math.cos(turn) * down),
        )
        for right, down in LABELS[label]()
    ]
    pencil.polygon(corners, fill=tuple(draw.randrange(200) for _ in range(3)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def folders() -> bytes:
    """A zip with a folder of drawings for each label."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for label in LABELS:
            for number in range(IMAGES):
                archive.writestr(f"{label}/{number:02}.jpg", drawing(label, number))
    return packed.getvalue()


def show_training(client: httpx2.Client, console: Console) -> bool:
    """Train a model, show its figures, and classify new drawings by it.

    Returns whether all of this succeeded. A service whose default model has no embedding cannot
    train, which is no failure.
    """
    answer = client.post(
        f"/api/v1/jobs/train-model/zip?name={NAME}",
        content=folders(),
        headers={"Content-Type": "application/zip"},
    )
    if answer.status_code == httpx2.codes.UNPROCESSABLE_ENTITY and _field(answer) == "base":
        console.print(f"Training is left out: {answer.json()['detail']}")
        return True
    created = answer.raise_for_status().json()
    job = follow(client, created, "training", len(LABELS) * IMAGES + 1, console)
    if job["status"] != "completed":
        console.print(f"Job {created['job_id']}: {job['status']}.")
        return False
    model = client.get(f"/api/v1/models/{job['trained_model']}").raise_for_status().json()
    version = next(each for each in model["versions"] if each["id"] == job["trained_model"])
    low, high = version["accuracy_interval"]
    console.print(
        f"Model {version['id']}: accuracy {version['accuracy']:.0%} "
        f"(95% interval: {low:.0%} to {high:.0%})."
    )
    console.print(confusion_table(version))
    succeeded = True
    for label in LABELS:
        said = _classify(client, drawing(label, NEW))
        console.print(f"A new drawing of a {label}: {said or 'no result'}")
        succeeded &= bool(said)
    return succeeded


def confusion_table(version: dict[str, Any]) -> Table:
    """A row for each true label and a column for each answer."""
    labels = [each["label"] for each in version["labels"]]
    table = Table()
    table.add_column("label \\ answer")
    for label in labels:
        table.add_column(label, justify="right")
    for label, row in zip(labels, version["confusion"], strict=True):
        table.add_row(label, *(str(count) if count else "\u00b7" for count in row))
    return table


def _classify(client: httpx2.Client, image: bytes) -> str:
    """What the model says about the image; empty if there is no result."""
    answer = client.post(
        f"/api/v1/images?model={NAME}",
        content=image,
        headers={"Content-Type": "image/jpeg", "Prefer": f"wait={WAIT_SECONDS}"},
    )
    result = answer.raise_for_status().json()
    if result["status"] != "success":
        return ""
    best = result["annotations"][0]
    said = f"{best['label']} {best['confidence']:.0%}"
    return said if result["confident"] else f"{NOT_SURE}, perhaps {said}"


def _field(refusal: httpx2.Response) -> str:
    return str(refusal.json().get("field", ""))
