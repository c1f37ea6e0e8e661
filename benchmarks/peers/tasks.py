"""The two tasks, the same for every framework: nothing, and Glimpse's own classifier."""

import functools
import os
from typing import TYPE_CHECKING

from benchmarks.peers import surroundings

if TYPE_CHECKING:
    from worker.inference.classifier import Classifier

# The defaults of Settings, which needs packages that these environments have no other use for.
MAX_PIXELS = 50_000_000
LABELS_PER_IMAGE = 5

Labels = list[tuple[str, float]]


def prepare() -> None:
    """To be called in each worker process before its first task: load the model, say so."""
    if surroundings.task() == surroundings.CLASSIFY:
        classifier()
    (surroundings.ready() / str(os.getpid())).touch()


def noop(image_hash: str) -> str:
    return image_hash


def classify(image_hash: str) -> Labels:
    """Labels of an image that lies on disk under its hash, as Glimpse's worker reads them."""
    data = (surroundings.images() / image_hash).read_bytes()
    return [(each.label, each.confidence) for each in classifier().classify(data).annotations]


@functools.cache
def classifier() -> "Classifier":
    # Late, so that the no-op's processes are not charged for ONNX Runtime.
    from core.bundles.bundle import read_bundle
    from worker.inference.classifier import Classifier

    return Classifier(
        read_bundle(surroundings.bundle()),
        max_pixels=MAX_PIXELS,
        labels_per_image=LABELS_PER_IMAGE,
    )
