"""Heads of trained models on the colour bundle, whose embedding is the mean colour."""

from pathlib import Path

import numpy as np

from worker.inference.head import Head, bytes_of_head
from worker.inference.head_file import identity_of_head

# A label for each of the three components of a colour.
LABELS = ("warm", "fresh", "cool")


def colour_head(base: str, *, sharpness: float = 20.0, threshold: float = 0.9) -> bytes:
    """The file of a head that answers with the strongest component of the colour."""
    weights = sharpness * np.eye(3, dtype=np.float32)
    return bytes_of_head(
        Head(base, LABELS, weights, np.zeros(3, np.float32), 1.0, (threshold,) * len(LABELS))
    )


def write_head(folder: Path, base: str, name: str = "moods") -> tuple[str, Path]:
    """Write the file of `colour_head`; its identity and its path."""
    data = colour_head(base)
    path = folder / "head"
    path.write_bytes(data)
    return identity_of_head(name, data), path
