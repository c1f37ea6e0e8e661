"""A process that decodes and classifies images; `worker.inference.pool` starts it.

A decoder that hangs or crashes on a hostile picture takes this process with it and nothing else.

Images that wait for it go through a small network together: that shares what is done once a run,
and one answer wakes the worker for all of them. A slow network gains nothing by it, and its images
would only wait for each other, so how many go together depends on how long one takes.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from core.bundles.bundle import read_bundle
from core.domain.records import Annotation
from core.errors import BundleError, GlimpseError, InvalidImage, NotFound, Unavailable
from core.observability.tracing import Stopwatch, make_current, span
from worker.errors import InferenceFailed
from worker.inference.classifier import Classifier
from worker.inference.memory_limit import memory_limit
from worker.inference.preprocessing import MemoryLimit, no_memory_limit
from worker.inference.protocol import (
    ERRORS,
    FILE,
    GROUP,
    LOAD,
    READ,
    Frame,
    FrameReader,
    packed_reply,
)

_PR_SET_PDEATHSIG = 1  # prctl(2)

GROUP_SECONDS = 0.1  # longest that images may be expected to take together
_NEWEST = 0.2  # the weight of the newest measurement in the time that an image takes

Reply = dict[str, Any]
T = TypeVar("T")


@dataclass(slots=True)
class _Loaded:
    """A model in memory. `seconds` is what one image takes by and large; 0 before the first."""

    classifier: Classifier
    seconds: float = 0.0
    together: bool = True

    def most(self) -> int:
        """How many images to take together."""
        if not (self.together and self.classifier.free_batch and self.seconds):
            return 1
        return max(1, min(GROUP, int(GROUP_SECONDS / self.seconds)))

    def took(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) * (_NEWEST if self.seconds else 1.0)


class Models:
    """The models in this process's memory, the least recently used one going first."""

    def __init__(
        self,
        capacity: int,
        max_pixels: int,
        labels_per_image: int,
        now: Callable[[], float] = time.perf_counter,
        memory_limit: MemoryLimit = no_memory_limit,
    ) -> None:
        """`now` is a clock in seconds. `memory_limit` bounds what decoding an image allocates."""
        self._now = now
        self._loaded: LRUCache[bytes, _Loaded] = LRUCache(capacity)
        self._max_pixels = max_pixels
        self._labels_per_image = labels_per_image
        self._memory_limit = memory_limit

    def answers(self, frames: Iterable[Frame]) -> Iterator[list[Reply]]:
        """The replies to `frames`, in their order; those that are ready together come together."""
        for group in self._groups(frames):
            began = self._now()
            replies = self._together(group) if len(group) > 1 else [self._alone(group[0])]
            model, together = self._loaded.get(group[0].name), 1
            if model is not None:
                if group[0].kind != LOAD:
                    model.took((self._now() - began) / len(group))
                together = model.most()
            yield [{**reply, "together": together} for reply in replies]

    def _groups(self, frames: Iterable[Frame]) -> Iterator[list[Frame]]:
        waiting = deque(frames)
        while waiting:
            first = waiting.popleft()
            group = [first]
            model = self._loaded.get(first.name)
            most = 1 if model is None or first.kind == LOAD or first.alone else model.most()
            while waiting and len(group) < most:
                frame = waiting[0]
                if frame.kind == LOAD or frame.alone or frame.name != first.name:
                    break
                group.append(waiting.popleft())
            yield group

    def _alone(self, frame: Frame) -> Reply:
        def annotations() -> tuple[Annotation, ...]:
            model = self._loaded.get(frame.name) or self._load(frame.name)
            if frame.kind == LOAD:
                return ()
            return model.classifier.annotate(_image(frame))

        watch = _new_watch()
        outcome = _outcome(annotations)
        return _reply(outcome, watch)

    def _together(self, group: list[Frame]) -> list[Reply]:
        """The replies to images of one model that is loaded. Each image's faults are its own."""
        model = self._loaded[group[0].name]
        tensors, watches = [], []
        for frame in group:
            watches.append(_new_watch())
            tensors.append(_outcome(partial(_tensor, model.classifier, frame)))
        good = [each for each in tensors if not isinstance(each, _Failure)]
        shared = _new_watch()
        try:
            found = iter(model.classifier.infer(good) if good else ())
        except Exception:  # noqa: BLE001 - whatever it is, each hears its own reason
            replies = [self._alone(frame) for frame in group]
            # Where nothing is wrong with any of them, the network does not take several after all.
            model.together = any("error" in reply for reply in replies)
            return replies
        steps = [step._replace(images=len(good)) for step in shared.steps]
        replies = []
        for tensor, watch in zip(tensors, watches, strict=True):
            if isinstance(tensor, _Failure):
                replies.append(_reply(tensor, watch))
            else:
                watch.steps += steps
                replies.append(_reply(next(found), watch))
        return replies

    def _load(self, name: bytes) -> _Loaded:
        identity, folder = json.loads(name)
        bundle = read_bundle(folder)
        if bundle.identity != identity:
            raise BundleError(f"{identity}: the folder holds {bundle.identity} by now.")
        loaded = self._loaded[name] = _Loaded(
            Classifier(
                bundle,
                max_pixels=self._max_pixels,
                labels_per_image=self._labels_per_image,
                memory_limit=self._memory_limit,
            )
        )
        return loaded


def serve(connection: socket.socket, models: Models) -> None:
    """Answer frames until the other side closes the connection."""
    reader = FrameReader(connection)
    with connection:
        while frames := reader.take(GROUP):
            for replies in models.answers(frames):
                connection.sendall(b"".join(map(packed_reply, replies)))


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is said of an image that failed: the error's code, its detail, and a traceback."""

    code: str
    detail: str
    cause: str


def _outcome(work: Callable[[], T]) -> T | _Failure:
    """What `work` gives, or why it failed."""
    try:
        return work()
    except GlimpseError as error:
        expected = isinstance(error, InvalidImage | NotFound | Unavailable)
        cause = "" if expected else traceback.format_exc()
        code = error.code if error.code in ERRORS else InferenceFailed.code
        return _Failure(code, error.detail, cause)
    except Exception:  # noqa: BLE001 - the other side must hear of it, whatever it is
        detail = "The classifier failed on this image."
        return _Failure(InferenceFailed.code, detail, traceback.format_exc())


def _reply(outcome: tuple[Annotation, ...] | _Failure, watch: Stopwatch) -> Reply:
    if isinstance(outcome, _Failure):
        error = [outcome.code, outcome.detail, outcome.cause]
        return {"error": error, "steps": watch.steps}
    found = [[note.label, note.confidence] for note in outcome]
    return {"annotations": found, "steps": watch.steps}


def _new_watch() -> Stopwatch:
    watch = Stopwatch()
    make_current(watch)
    return watch


def _tensor(classifier: Classifier, frame: Frame) -> NDArray[np.float32]:
    return classifier.tensor(_image(frame))


def _image(frame: Frame) -> bytes:
    return _read(frame.data) if frame.kind == FILE else frame.data


def _read(name: bytes) -> bytes:
    path = Path(os.fsdecode(name))
    with span(READ):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound("There is no such image.") from None
        except OSError as error:
            raise Unavailable("The image storage does not answer.") from error
        # What a disk has damaged is another image: its labels, or its fault, would be kept for ever
        # as this one's.
        if hashlib.sha256(data).hexdigest() != path.name:
            raise NotFound("The stored image is damaged.")
    return data


def _die_with_parent() -> None:
    """An inference that never ends must not outlive a worker that was killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("descriptor", type=int, help="an inherited stream socket")
    parser.add_argument("--capacity", type=int, required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    parser.add_argument("--labels-per-image", type=int, required=True)
    args = parser.parse_args()
    # Ctrl-C reaches the whole terminal; when to stop is the worker's decision.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    _die_with_parent()
    models = Models(
        args.capacity, args.max_pixels, args.labels_per_image, memory_limit=memory_limit
    )
    with contextlib.suppress(ConnectionError):
        serve(socket.socket(fileno=args.descriptor), models)


if __name__ == "__main__":
    main()
