"""What the predictor of a bundle in Python returns for an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """`labels` are confidences from 0 to 1 by label. `output` is anything that JSON can express.

    A prediction has one of them or both. `output` has at most 64 KiB as JSON.
    """

    labels: Mapping[str, float] = field(default_factory=dict)
    output: Any = None
