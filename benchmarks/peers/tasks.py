"""The two tasks, which are the same for every framework: a no-op, and Glimpse's classifier."""

import functools
import os
from typing import TYPE_CHECKING

from benchmarks.peers import surroundings

if TYPE_CHECKING:
    from worker.inference.classifier import Classifier

# The defaults of Settings, which needs packages that these environments do not have.
MAX_PIXELS = 64_000_000
LABELS_PER_IMAGE = 5

Labels = list[tuple[str, float]]


def prepare() -> None:
    """Load the model and report it. Each worker process calls this before its first task."""
    if surroundings.task() == surroundings.CLASSIFY:
        classifier()
    (surroundings.ready() / str(os.getpid())).touch()


def noop(image_hash: str) -> str:
    return image_hash


def classify(image_hash: str) -> Labels:
    """The labels of an image on disk, named by its hash, as Glimpse's worker computes them."""
    data = (surroundings.images() / image_hash).read_bytes()
    return [(each.label, each.confidence) for each in classifier().classify(data).annotations]


@functools.cache
def classifier() -> "Classifier":
    # Here, so that processes of the no-op do not load ONNX Runtime.
    from core.bundles.bundle import read_bundle
    from worker.inference.classifier import Classifier

    return Classifier(
        read_bundle(surroundings.bundle()),
        max_pixels=MAX_PIXELS,
        labels_per_image=LABELS_PER_IMAGE,
    )
