"""A head: the linear classifier of a trained model, on the embeddings of its base model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.domain.records import Annotation, Classification
from core.errors import BundleError
from worker.inference.head_file import HeadHeader, pack_head, unpack_head

NUMBER = np.dtype("<f4")  # the type of embeddings and heads in files and messages

Matrix = NDArray[np.float32]


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
    """The file of the head (`worker.inference.head_file`)."""
    header = HeadHeader(
        base=head.base,
        dimensions=len(head.weights),
        labels=head.labels,
        temperature=head.temperature,
        thresholds=head.thresholds,
    )
    numbers = (np.ascontiguousarray(each, NUMBER).tobytes() for each in (head.weights, head.bias))
    return pack_head(header, b"".join(numbers))


def head_of_bytes(data: bytes) -> Head:
    """The inverse of `bytes_of_head`. Raises BundleError as `unpack_head` does."""
    header, begin = unpack_head(data)
    values = np.frombuffer(data, NUMBER, offset=begin).astype(np.float32)
    count = header.dimensions * len(header.labels)
    return Head(
        header.base,
        header.labels,
        values[:count].reshape(header.dimensions, -1),
        values[count:],
        header.temperature,
        header.thresholds,
    )
