"""A head: the linear classifier of a trained model, on the embeddings of its base model.

The file of a head is immutable, and its digest identifies the model's version:

    8 bytes "GLIMPSEH", 4 bytes N (big-endian), N bytes of JSON,
    then float32 in little-endian: dimensions x labels weights, and a bias for each label

The JSON is {"format": 1, "base", "dimensions", "labels", "temperature", "thresholds"}.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.domain.records import MODEL, Annotation, Classification
from core.errors import BundleError

MAGIC, FORMAT = b"GLIMPSEH", 1
MEDIA_TYPE = "application/octet-stream"
_SIZE = struct.Struct(">I")
_NUMBER = np.dtype("<f4")

Matrix = NDArray[np.float32]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    base: Annotated[str, Field(pattern=f"^{MODEL.pattern}$")]
    dimensions: Annotated[int, Field(ge=1, le=65536)]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    temperature: Annotated[float, Field(gt=0)]
    thresholds: tuple[float, ...]

    @model_validator(mode="after")
    def _check_length(self) -> "_Header":
        if len(self.thresholds) != len(self.labels):
            raise ValueError("labels and thresholds differ in number")
        return self


@dataclass(frozen=True, slots=True)
class Head:
    """`weights` has a row for each number of an embedding and a column for each label.

    Logits are divided by `temperature`. An answer is confident from its label's threshold on.
    """

    base: str
    labels: tuple[str, ...]
    weights: Matrix
    bias: Matrix
    temperature: float
    thresholds: tuple[float, ...]

    def probabilities(self, embedding: Matrix) -> NDArray[np.float64]:
        """The probability of each label for one embedding. Raises BundleError if its size differs.

        The embedding may have any length: it is normalised.
        """
        if embedding.shape != (len(self.weights),):
            raise BundleError(f"The head needs {len(self.weights)} numbers, not {embedding.size}.")
        logits = normalized(embedding[None]) @ self.weights + self.bias
        scores = logits[0].astype(np.float64) / self.temperature
        scores = np.exp(scores - scores.max())
        found: NDArray[np.float64] = scores / scores.sum()
        return found

    def classify(self, embedding: Matrix, count: int) -> Classification:
        """The `count` most likely labels."""
        scores = self.probabilities(embedding)
        best = np.argsort(-scores, kind="stable")[:count]
        annotations = tuple(
            Annotation(index, self.labels[label], float(scores[label]))
            for index, label in enumerate(best, start=1)
        )
        return Classification(
            annotations, confident=bool(scores[best[0]] >= self.thresholds[best[0]])
        )


def normalized(embeddings: Matrix) -> Matrix:
    """The embeddings, one a row, with the length 1. One without a direction stays zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    found: Matrix = embeddings / np.maximum(lengths, np.float32(1e-12))
    return found


def bytes_of_head(head: Head) -> bytes:
    header = _Header(
        format=FORMAT,
        base=head.base,
        dimensions=len(head.weights),
        labels=head.labels,
        temperature=head.temperature,
        thresholds=head.thresholds,
    )
    text = json.dumps(header.model_dump(), ensure_ascii=False, separators=(",", ":")).encode()
    numbers = (np.ascontiguousarray(each, _NUMBER).tobytes() for each in (head.weights, head.bias))
    return b"".join((MAGIC, _SIZE.pack(len(text)), text, *numbers))


def head_of_bytes(data: bytes) -> Head:
    """The inverse of `bytes_of_head`.

    Raises BundleError, also for a format of a newer release: a worker of that release can read it.
    """
    start = len(MAGIC) + _SIZE.size
    if len(data) < start or not data.startswith(MAGIC):
        raise BundleError("The file is not a head.")
    (size,) = _SIZE.unpack_from(data, len(MAGIC))
    try:
        header = _Header.model_validate_json(data[start : start + size])
    except ValidationError as error:
        raise BundleError("This release cannot read the head.") from error
    count = header.dimensions * len(header.labels)
    if len(data) - start - size != _NUMBER.itemsize * (count + len(header.labels)):
        raise BundleError("The head is damaged.")
    values = np.frombuffer(data, _NUMBER, offset=start + size).astype(np.float32)
    return Head(
        header.base,
        header.labels,
        values[:count].reshape(header.dimensions, -1),
        values[count:],
        header.temperature,
        header.thresholds,
    )


def identity_of_head(name: str, data: bytes) -> str:
    """The identity of the version of the model `name` whose head's file is `data`."""
    return f"{name}@{hashlib.sha256(data).hexdigest()[:12]}"
