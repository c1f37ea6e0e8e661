"""A process that decodes and classifies one image at a time; `worker.classifier_pool` starts it.

A decoder that hangs or crashes on a hostile picture takes this process with it and nothing else.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

from cachetools import LRUCache

from core.errors import BundleError, GlimpseError, InvalidImage, NotFound, Unavailable
from core.model_bundle import read_bundle
from core.tracing import Stopwatch, make_current, span
from worker.classifier import Classifier
from worker.classifier_protocol import ERRORS, FILE, LOAD, READ, REPLY, REQUEST
from worker.errors import InferenceFailed

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Models:
    """The models in this process's memory, the least recently used one going first."""

    def __init__(self, capacity: int, max_pixels: int, labels_per_image: int) -> None:
        self._loaded: LRUCache[bytes, Classifier] = LRUCache(capacity)
        self._max_pixels = max_pixels
        self._labels_per_image = labels_per_image

    def answer(self, kind: int, name: bytes, data: bytes) -> dict[str, object]:
        """The reply to one frame."""
        watch = Stopwatch()
        make_current(watch)
        return {**self._answer(kind, name, data), "steps": watch.steps}

    def _answer(self, kind: int, name: bytes, data: bytes) -> dict[str, object]:
        try:
            classifier = self._loaded.get(name) or self._load(name)
            if kind == LOAD:
                return {"annotations": []}
            found = classifier.annotate(_read(data) if kind == FILE else data)
        except GlimpseError as error:
            expected = isinstance(error, InvalidImage | NotFound | Unavailable)
            cause = "" if expected else traceback.format_exc()
            code = error.code if error.code in ERRORS else InferenceFailed.code
            return {"error": [code, error.detail, cause]}
        except Exception:  # noqa: BLE001 - the other side must hear of it, whatever it is
            detail = "The classifier failed on this image."
            return {"error": [InferenceFailed.code, detail, traceback.format_exc()]}
        return {"annotations": [[note.label, note.confidence] for note in found]}

    def _load(self, name: bytes) -> Classifier:
        identity, folder = json.loads(name)
        bundle = read_bundle(folder)
        if bundle.identity != identity:
            raise BundleError(f"{identity}: the folder holds {bundle.identity} by now.")
        classifier = Classifier(
            bundle, max_pixels=self._max_pixels, labels_per_image=self._labels_per_image
        )
        self._loaded[name] = classifier
        return classifier


def serve(connection: socket.socket, models: Models) -> None:
    """Answer frames until the other side closes the connection."""
    with connection, connection.makefile("rb") as frames:
        while len(head := frames.read(REQUEST.size)) == REQUEST.size:
            kind, *sizes = REQUEST.unpack(head)
            name, data = (_exactly(frames, size) for size in sizes)
            reply = json.dumps(models.answer(kind, name, data)).encode()
            connection.sendall(REPLY.pack(len(reply)) + reply)


def _read(path: bytes) -> bytes:
    with span(READ):
        try:
            return Path(os.fsdecode(path)).read_bytes()
        except FileNotFoundError:
            raise NotFound("There is no such image.") from None
        except OSError as error:
            raise Unavailable("The image storage does not answer.") from error


def _exactly(frames: BinaryIO, size: int) -> bytes:
    data = frames.read(size)
    if len(data) < size:
        raise EOFError
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
    models = Models(args.capacity, args.max_pixels, args.labels_per_image)
    with contextlib.suppress(EOFError, ConnectionError):
        serve(socket.socket(fileno=args.descriptor), models)


if __name__ == "__main__":
    main()
