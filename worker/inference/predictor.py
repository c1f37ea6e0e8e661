"""Loads a bundle in Python and classifies images with its predictor. All functions block.

They run in a classifier process: a predictor that hangs or crashes affects only that process. This
module checks what a predictor returns. An invalid prediction fails the image with PredictionFailed.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from packaging.requirements import InvalidRequirement, Requirement
from PIL import Image

from core.bundles.bundle import MAX_LABEL_LENGTH
from core.bundles.python_bundle import (
    PREDICTOR_FILE,
    REQUIREMENTS_FILE,
    PythonBundle,
    verify_python_bundle,
)
from core.domain.records import MAX_LABELS, Annotation, Classification
from core.errors import BundleError
from core.imaging.limits import PixelLimits
from worker.errors import InferenceFailed, PredictionFailed
from worker.inference.preprocessing import FittingDecoder, MemoryLimit, no_memory_limit
from worker.inference.steps import timed
from worker.inference.thumbnail import encoded_thumbnail

MAX_OUTPUT_BYTES: Final = 64 * 1024
# What one call of a predictor may allocate. Its model was loaded before.
PREDICT_BYTES: Final = 2 * 2**30
_REAL: Final = (int, float, np.integer, np.floating)


class Predictor(Protocol):
    """The class `Predictor` of `predictor.py`."""

    def load(self, folder: Path) -> None: ...

    def predict(self, images: list[Image.Image]) -> Sequence[Any]: ...


class PythonClassifier:
    """A predictor with its bundle. It is a `worker.inference.process.ImageClassifier`."""

    free_batch = True

    def __init__(
        self,
        bundle: PythonBundle,
        *,
        max_pixels: PixelLimits | int,
        labels_per_image: int = MAX_LABELS,
        memory_limit: MemoryLimit = no_memory_limit,
        thumbnails: bool = False,
    ) -> None:
        """Verify `bundle` and load its predictor. Raises BundleError."""
        self._thumbnails = thumbnails
        verify_python_bundle(bundle)
        check_requirements(bundle.folder)
        self.bundle = bundle
        self._count = labels_per_image
        self._known = frozenset(bundle.labels)
        self._memory_limit = memory_limit
        self._decoder = FittingDecoder(bundle.manifest.max_side, max_pixels, memory_limit)
        self._predictor = _load(bundle)

    def classify(self, data: bytes) -> Classification:
        """What the predictor says about an encoded image.

        Raises UndecodableImage or InvalidImage for faults of the image, and PredictionFailed.
        """
        image, thumbnail = self.prepare(data)
        (found,) = self.infer([image])
        return replace(found, thumbnail=thumbnail)

    def prepare(self, data: bytes, *, thumbnail: bool = True) -> tuple[Image.Image, bytes]:
        """The decoded image and its thumbnail, as `Classifier.prepare`."""
        with timed("decode"):
            image, small = self._decoder.pictures(data, thumbnail=thumbnail and self._thumbnails)
            return image, b"" if small is None else encoded_thumbnail(small)

    def infer(self, tensors: Sequence[Image.Image]) -> list[Classification]:
        """What the predictor says about each image. Raises PredictionFailed."""
        with timed("infer"):
            try:
                with self._memory_limit(PREDICT_BYTES):
                    found = self._predictor.predict(list(tensors))
            # Libraries also raise errors that are no Exception: a panic of a library in Rust, or an
            # exit. The process ignores SIGINT, so it gets no KeyboardInterrupt of its own.
            except BaseException as error:
                raise PredictionFailed(f"The predictor raised {type(error).__name__}.") from error
            if not isinstance(found, Sequence) or isinstance(found, str | bytes):
                _fail(f"returned {_kind(found)}, not a list of predictions")
            if len(found) != len(tensors):
                _fail(f"returned {len(found)} predictions for {len(tensors)} images")
            try:
                return [self._classification(each) for each in found]
            except PredictionFailed:
                raise
            except Exception as error:  # raised by a property or a mapping of the prediction
                raise PredictionFailed(
                    f"The predictor returned a prediction that raised {type(error).__name__}."
                ) from error

    def embed(self, tensors: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Raises InferenceFailed: a predictor has no embedding."""
        raise InferenceFailed("A model in Python has no embedding.")

    def _classification(self, prediction: Any) -> Classification:
        if isinstance(prediction, Mapping):
            unknown = set(prediction) - {"labels", "output"}
            if unknown:
                _fail("returned a prediction with members other than labels and output")
            labels, output = prediction.get("labels"), prediction.get("output")
        elif hasattr(prediction, "labels") and hasattr(prediction, "output"):
            labels, output = prediction.labels, prediction.output
        else:
            _fail(f"returned {_kind(prediction)}, not a prediction")
        annotations = self._annotations({} if labels is None else labels)
        text = "" if output is None else _json(output)
        if not annotations and not text:
            _fail("returned a prediction without labels and without output")
        threshold = self.bundle.manifest.threshold
        return Classification(
            annotations,
            confident=None
            if threshold is None or not annotations
            else annotations[0].confidence >= threshold,
            output=text,
        )

    def _annotations(self, labels: Any) -> tuple[Annotation, ...]:
        if not isinstance(labels, Mapping):
            _fail(f"returned {_kind(labels)} as labels, not a dictionary")
        for label, confidence in labels.items():
            if not isinstance(label, str) or not label.strip() or not _storable(label):
                _fail(f"returned a label that is not a text of 1 to {MAX_LABEL_LENGTH} characters")
            if self._known and label not in self._known:
                _fail("returned a label that labels.txt does not list")
            if isinstance(confidence, bool) or not isinstance(confidence, _REAL):
                _fail(f"returned {_kind(confidence)} as a confidence")
            if not 0 <= confidence <= 1:  # which no NaN is
                _fail("returned a confidence that is not a number from 0 to 1")
        best = sorted(labels.items(), key=lambda each: -float(each[1]))[: self._count]
        return tuple(
            Annotation(index, label, float(confidence))
            for index, (label, confidence) in enumerate(best, start=1)
        )


def check_requirements(folder: Path) -> None:
    """Raise BundleError unless every package in `requirements.txt` is installed.

    Nothing is installed: the operator does that. Lines are requirements (PEP 508) or comments.
    """
    file = folder / REQUIREMENTS_FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read as UTF-8.") from error
    for line in lines:
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            raise BundleError(f"{file}: {text!r} is not a requirement.") from None
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            raise BundleError(f"{file}: {text} is not installed.") from None
        if not wanted.specifier.contains(found, prereleases=True):
            raise BundleError(f"{file}: {text} is required, and {found} is installed.")


def _load(bundle: PythonBundle) -> Predictor:
    """Import `predictor.py`, and load its class `Predictor`. Raises BundleError."""
    file = bundle.folder / PREDICTOR_FILE
    name = f"glimpse_predictor_{bundle.identity.partition('@')[2]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "the file ends in .py"
    module = importlib.util.module_from_spec(spec)
    with _importing_from(bundle.folder):
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            raise BundleError(f"{file} raised {_named(error)} when it was imported.") from error
        made = getattr(module, "Predictor", None)
        if not isinstance(made, type):
            raise BundleError(f"{file} has no class Predictor.")
        for method in ("load", "predict"):
            if not callable(getattr(made, method, None)):
                raise BundleError(f"{file}: the class Predictor has no method {method}.")
        try:
            predictor: Predictor = made()
            predictor.load(bundle.folder)
        except BaseException as error:
            raise BundleError(f"{file}: Predictor.load raised {_named(error)}.") from error
    return predictor


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let `predictor.py` import modules beside it. Another bundle may have others of that name."""
    before, writes = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]


def _storable(label: str) -> bool:
    """Whether a label is short enough, and valid Unicode: no store accepts a lone surrogate."""
    try:
        label.encode()
    except UnicodeEncodeError:
        return False
    return len(label) <= MAX_LABEL_LENGTH


def _json(output: Any) -> str:
    try:
        text = json.dumps(output, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError):  # an encoding error is a ValueError
        _fail("returned an output that JSON cannot express")
    if size > MAX_OUTPUT_BYTES:
        _fail(f"returned an output of {size} bytes, and {MAX_OUTPUT_BYTES} are allowed")
    return text


def _fail(what: str) -> NoReturn:
    raise PredictionFailed(f"The predictor {what}.")


def _kind(value: object) -> str:
    return f"a value of the type {type(value).__name__}"


def _named(error: BaseException) -> str:
    """The exception in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
