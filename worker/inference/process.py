"""A process that decodes and classifies images. `worker.inference.pool` starts it.

A decoder that hangs or crashes on a hostile image affects only this process.

Waiting images go through a fast network as one batch, which shares the fixed costs of a run and
wakes the worker once for all of them. A slow network gains nothing from a batch, and its images
would wait for each other. The batch size therefore depends on the time that one image takes.
"""

from core.gc_pause import begin_gc_pause, end_gc_pause

if __name__ == "__main__":
    begin_gc_pause()

import argparse
import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from core.bundles.bundle import Bundle
from core.bundles.python_bundle import read_any_bundle
from core.child_process import end_with_parent, restrict_process
from core.domain.records import Annotation, Classification
from core.errors import BundleError, GlimpseError, InvalidImage, NotFound, Unavailable
from core.imaging.limits import PixelLimits
from worker.errors import InferenceFailed
from worker.inference.classifier import Classifier
from worker.inference.head import NUMBER, Head, head_of_bytes
from worker.inference.head_file import identity_of_head
from worker.inference.memory_limit import memory_limit
from worker.inference.preprocessing import MemoryLimit, max_decoding_bytes, no_memory_limit
from worker.inference.protocol import (
    EMBEDDING,
    ERRORS,
    FILE,
    LOAD,
    MAX_BATCH,
    READ,
    Frame,
    FrameReader,
    packed_reply,
)
from worker.inference.steps import Step, new_steps, timed

# Bytes that libraries, models and threads may map, besides the memory for decoding. A Python bundle
# may need several gigabytes for its libraries.
ADDRESS_SPACE = 16 * 2**30
BATCH_SECONDS = 0.1  # the longest expected time of a batch
MAX_HEADS = 64  # in memory; a head of ten labels has 50 kB
_NEWEST = 0.2  # weight of the newest measurement in the moving average

Reply = dict[str, Any]
Result: TypeAlias = Classification | NDArray[np.float32]  # labels, or an embedding
T = TypeVar("T")


class ImageClassifier(Protocol):
    """A loaded bundle, of either kind.

    What `prepare` returns, beside the thumbnail, is for `infer` and `embed` alone.
    """

    @property
    def free_batch(self) -> bool:
        """Whether `infer` accepts several images at once."""
        ...

    def classify(self, data: bytes) -> Classification: ...

    def prepare(self, data: bytes, *, thumbnail: bool = True) -> tuple[Any, bytes]: ...

    def infer(self, tensors: Sequence[Any]) -> list[Classification]: ...

    def embed(self, tensors: Sequence[Any]) -> Sequence[NDArray[np.float32]]: ...


@dataclass(slots=True)
class _Loaded:
    """A model in memory. `seconds` is a moving average for one image; 0 before the first."""

    classifier: ImageClassifier
    seconds: float = 0.0
    batches: bool = True  # false once the network has failed on a batch of good images

    def batch_size(self) -> int:
        """How many images to run as one batch."""
        if not (self.batches and self.classifier.free_batch and self.seconds):
            return 1
        return max(1, min(MAX_BATCH, int(BATCH_SECONDS / self.seconds)))

    def measured(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) * (_NEWEST if self.seconds else 1.0)


class Models:
    """The models in this process's memory. The least recently used one is dropped first."""

    def __init__(
        self,
        capacity: int,
        max_pixels: PixelLimits | int,
        labels_per_image: int,
        now: Callable[[], float] = time.perf_counter,
        memory_limit: MemoryLimit = no_memory_limit,
        *,
        thumbnails: bool = False,
    ) -> None:
        """`now` is a clock in seconds. `memory_limit` bounds what decoding an image allocates.

        With `thumbnails`, each reply to an image has one.
        """
        self._thumbnails = thumbnails
        self._now = now
        self._loaded: LRUCache[bytes, _Loaded] = LRUCache(capacity)
        self._heads: LRUCache[bytes, Head] = LRUCache(MAX_HEADS)
        self._max_pixels = max_pixels
        self._labels_per_image = labels_per_image
        self._memory_limit = memory_limit

    def answers(self, frames: Iterable[Frame]) -> Iterator[list[Reply]]:
        """The replies to `frames`, in order. Replies of one batch come as one list."""
        for batch in self._batches(frames):
            began = self._now()
            replies = self._batch(batch) if len(batch) > 1 else [self._single(batch[0])]
            model, batch_size = self._loaded.get(batch[0].name), 1
            if model is not None:
                if batch[0].kind != LOAD:
                    model.measured((self._now() - began) / len(batch))
                batch_size = model.batch_size()
            yield [{**reply, "batch_size": batch_size} for reply in replies]

    def _batches(self, frames: Iterable[Frame]) -> Iterator[list[Frame]]:
        """Split `frames` into batches of consecutive images of one model."""
        waiting = deque(frames)
        while waiting:
            first = waiting.popleft()
            batch = [first]
            model = self._loaded.get(first.name)
            single = model is None or first.kind == LOAD or first.alone
            limit = 1 if model is None or single else model.batch_size()
            while waiting and len(batch) < limit:
                frame = waiting[0]
                if (
                    frame.kind == LOAD
                    or frame.alone
                    or frame.embed is not first.embed
                    or frame.name != first.name
                ):
                    break
                batch.append(waiting.popleft())
            yield batch

    def _single(self, frame: Frame) -> Reply:
        def result() -> Result:
            if frame.kind == EMBEDDING:
                head = self._heads.get(frame.name) or self._load_head(frame.name)
                return head.classify(np.frombuffer(frame.data, NUMBER), self._labels_per_image)
            model = self._loaded.get(frame.name) or self._load(frame.name)
            if frame.kind == LOAD:
                return Classification(())
            if frame.embed:
                (embedding,) = model.classifier.embed([_prepared(model.classifier, frame)[0]])
                return embedding
            return model.classifier.classify(_image(frame))

        steps = new_steps()
        outcome = _outcome(result)
        return _reply(outcome, steps)

    def _batch(self, batch: list[Frame]) -> list[Reply]:
        """The replies to images of one loaded model. A broken image fails alone."""
        model = self._loaded[batch[0].name]
        prepared, steps = [], []
        for frame in batch:
            steps.append(new_steps())
            prepared.append(_outcome(partial(_prepared, model.classifier, frame)))
        good = [each[0] for each in prepared if not isinstance(each, _Failure)]
        shared = new_steps()
        try:
            work = model.classifier.embed if batch[0].embed else model.classifier.infer
            found: Iterator[Result] = iter(work(good) if good else ())
        except Exception:  # noqa: BLE001 - each image is tried alone and gets its own error
            replies = [self._single(frame) for frame in batch]
            # If no image fails alone, the network does not accept batches after all.
            model.batches = any("error" in reply for reply in replies)
            return replies
        shared = [step._replace(images=len(good)) for step in shared]
        replies = []
        for image, own in zip(prepared, steps, strict=True):
            if isinstance(image, _Failure):
                replies.append(_reply(image, own))
                continue
            result = next(found)
            if isinstance(result, Classification):
                result = replace(result, thumbnail=image[1])
            replies.append(_reply(result, own + shared))
        return replies

    def _load(self, name: bytes) -> _Loaded:
        identity, folder = json.loads(name)
        bundle = read_any_bundle(folder)
        if bundle.identity != identity:
            raise BundleError(f"{identity}: the folder now holds {bundle.identity}.")
        options: dict[str, Any] = {
            "max_pixels": self._max_pixels,
            "labels_per_image": self._labels_per_image,
            "memory_limit": self._memory_limit,
            "thumbnails": self._thumbnails,
        }
        if isinstance(bundle, Bundle):
            loaded = _Loaded(Classifier(bundle, **options))
        else:
            # Imported here: most processes have no bundle in Python.
            from worker.inference.predictor import PythonClassifier

            loaded = _Loaded(PythonClassifier(bundle, **options))
        self._loaded[name] = loaded
        return loaded

    def _load_head(self, name: bytes) -> Head:
        identity, path = json.loads(name)
        data = Path(path).read_bytes()
        if identity_of_head(identity.partition("@")[0], data) != identity:
            raise BundleError(f"{identity}: the head is damaged.")
        head = self._heads[name] = head_of_bytes(data)
        return head


def serve(connection: socket.socket, models: Models) -> None:
    """Answer frames until the worker closes the connection."""
    reader = FrameReader(connection)
    with connection:
        while frames := reader.take(MAX_BATCH):
            for replies in models.answers(frames):
                connection.sendall(b"".join(map(packed_reply, replies)))


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an image failed. `cause` is a traceback for the log, or empty."""

    code: str
    detail: str
    cause: str


def _outcome(work: Callable[[], T]) -> T | _Failure:
    """The result of `work`, or why it failed."""
    try:
        return work()
    except GlimpseError as error:
        expected = isinstance(error, InvalidImage | NotFound | Unavailable)
        cause = "" if expected else traceback.format_exc()
        code = error.code if error.code in ERRORS else InferenceFailed.code
        return _Failure(code, error.detail, cause)
    except Exception:  # noqa: BLE001 - the worker needs an answer, whatever the error
        detail = "The classifier failed on this image."
        return _Failure(InferenceFailed.code, detail, traceback.format_exc())


def _reply(outcome: Result | _Failure, steps: list[Step]) -> Reply:
    if isinstance(outcome, _Failure):
        error = [outcome.code, outcome.detail, outcome.cause]
        return {"error": error, "steps": steps}
    if isinstance(outcome, np.ndarray):
        numbers = np.ascontiguousarray(outcome, NUMBER).tobytes()
        return {"embedding": base64.b64encode(numbers).decode(), "steps": steps}
    return {
        "annotations": _pairs(outcome.annotations),
        "categories": _pairs(outcome.categories),
        "confident": outcome.confident,
        "thumbnail": outcome.thumbnail,
        "output": outcome.output,
        "steps": steps,
    }


def _pairs(annotations: tuple[Annotation, ...]) -> list[tuple[str, float]]:
    return [(each.label, each.confidence) for each in annotations]


def _prepared(classifier: ImageClassifier, frame: Frame) -> tuple[Any, bytes]:
    return classifier.prepare(_image(frame), thumbnail=not frame.embed)


def _image(frame: Frame) -> bytes:
    return _read(frame.data) if frame.kind == FILE else frame.data


def _read(name: bytes) -> bytes:
    path = Path(os.fsdecode(name))
    with timed(READ):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound("There is no such image.") from None
        except OSError as error:
            raise Unavailable("The image storage does not answer.") from error
        # A disk may have damaged the file. Its labels must not be stored as those of this image.
        if hashlib.sha256(data).hexdigest() != path.name:
            raise NotFound("The stored image is damaged.")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("descriptor", type=int, help="an inherited stream socket")
    parser.add_argument("--capacity", type=int, required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    parser.add_argument("--labels-per-image", type=int, required=True)
    parser.add_argument("--thumbnails", action="store_true")
    args = parser.parse_args()
    # Ctrl-C reaches every process of the terminal. The worker decides when this one stops.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)  # even during an inference
    limits = PixelLimits.of(args.max_pixels)
    restrict_process(ADDRESS_SPACE + max_decoding_bytes(limits))
    models = Models(
        args.capacity,
        limits,
        args.labels_per_image,
        memory_limit=memory_limit,
        thumbnails=args.thumbnails,
    )
    end_gc_pause()
    with contextlib.suppress(ConnectionError):
        serve(socket.socket(fileno=args.descriptor), models)


if __name__ == "__main__":
    main()
