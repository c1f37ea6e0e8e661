"""Loads a bundle into ONNX Runtime and classifies images with it. All functions block."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.bundles.bundle import MODEL_FILE, Bundle, verify_bundle
from core.domain.records import Annotation, Classification
from core.errors import BundleError
from core.imaging.limits import PixelLimits
from worker.errors import InferenceFailed
from worker.inference.preprocessing import MemoryLimit, Preprocessor, no_memory_limit
from worker.inference.steps import timed

MAX_CATEGORIES = 10  # in a result, at most

# Builds for some systems report their use to Microsoft.
ort.disable_telemetry_events()

_WARNING = 2  # ONNX Runtime severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


class Classifier:
    """A bundle's network with its preprocessing and labels. Safe to use from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_pixels: PixelLimits | int,
        labels_per_image: int,
        memory_limit: MemoryLimit = no_memory_limit,
        thumbnails: bool = False,
    ) -> None:
        """Verify and load `bundle`. Raises BundleError if its files contradict the manifest.

        `memory_limit` bounds what decoding an image allocates. With `thumbnails`, each
        classification has one.
        """
        verify_bundle(bundle)
        manifest = bundle.manifest
        self.bundle = bundle
        self._preprocessor = Preprocessor(manifest, max_pixels, memory_limit)
        self._thumbnails = thumbnails
        self._count = min(labels_per_image, len(bundle.labels))
        self._input, self._output = manifest.input.name, manifest.outputs.scores
        self._logits = manifest.outputs.kind == "logits"
        self._categories = _CategoryIndex(bundle)
        try:
            self._session = _session(bundle.folder / MODEL_FILE)
        except Exception as error:
            if "External data" in str(error):
                raise BundleError(
                    f"{bundle.identity}: {MODEL_FILE} has weights in another file. Save the "
                    "network as one file."
                ) from error
            raise BundleError(f"{bundle.identity}: ONNX Runtime cannot load the model.") from error
        self._check_signature()
        self._warm_up()

    @property
    def free_batch(self) -> bool:
        """Whether the network declares that it accepts several images at once."""
        return self.bundle.manifest.input.batch is None

    def classify(self, data: bytes) -> Classification:
        """The most likely labels and categories of an encoded image.

        Raises UndecodableImage or InvalidImage for faults of the image, and InferenceFailed for
        faults of the model.
        """
        tensor, thumbnail = self.prepare(data)
        (found,) = self.infer([tensor])
        return replace(found, thumbnail=thumbnail)

    def prepare(self, data: bytes, *, thumbnail: bool = True) -> tuple[NDArray[np.float32], bytes]:
        """The network's input for an encoded image, and its thumbnail.

        The thumbnail is empty without `thumbnail`, and without the `thumbnails` of this classifier.
        Raises UndecodableImage or InvalidImage.
        """
        with timed("decode"):
            return self._preprocessor.prepare(data, thumbnail=thumbnail and self._thumbnails)

    def tensor(self, data: bytes) -> NDArray[np.float32]:
        """The network's input for an encoded image. Raises UndecodableImage or InvalidImage."""
        return self.prepare(data, thumbnail=False)[0]

    def infer(self, tensors: Sequence[NDArray[np.float32]]) -> list[Classification]:
        """The most likely labels and categories of each image. Raises InferenceFailed.

        Pass more than one image only if `free_batch` is true.
        """
        with timed("infer"):
            batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
            return [self._classification(scores) for scores in self._scores(batch)]

    def embed(self, tensors: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The embedding of each image, as the network gives it. Raises InferenceFailed.

        Pass more than one image only if `free_batch` is true.
        """
        name = self.bundle.manifest.outputs.embedding
        if name is None:
            raise InferenceFailed("The model has no embedding.")
        with timed("infer"):
            batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
            found = np.asarray(self._run(name, batch), np.float32).reshape(len(batch), -1)
        if not np.isfinite(found).all():
            raise InferenceFailed("The model returned an embedding of numbers that are not finite.")
        return list(found)

    def _run(self, output: str, batch: NDArray[np.float32]) -> object:
        """One output of the network. Raises InferenceFailed."""
        try:
            (found,) = self._session.run([output], {self._input: batch})
        except Exception as error:
            raise InferenceFailed("The model failed on this image.") from error
        return found

    def _scores(self, batch: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities: a row for each image, a column for each label."""
        scores = np.asarray(self._run(self._output, batch), np.float64)
        if scores.size != len(batch) * len(self.bundle.labels):
            raise InferenceFailed("The number of scores differs from the number of labels.")
        scores = scores.reshape(len(batch), -1)
        if not np.isfinite(scores).all():
            raise InferenceFailed("The model returned scores that are not finite numbers.")
        if self._logits:
            # Subtracting the maximum keeps the exponentials from overflowing.
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        elif scores.min() < -1e-3 or scores.max() > 1 + 1e-3:
            raise InferenceFailed("The model returned scores that are not probabilities.")
        return scores

    def _classification(self, scores: NDArray[np.float64]) -> Classification:
        best = np.argsort(-scores, kind="stable")[: self._count]
        return Classification(
            annotations=tuple(
                Annotation(index, self.bundle.labels[label], float(scores[label]))
                for index, label in enumerate(best, start=1)
            ),
            categories=self._categories.best(scores),
            confident=self._confident(scores, int(best[0])),
        )

    def _confident(self, scores: NDArray[np.float64], best: int) -> bool | None:
        """Whether the label `best` or its narrowest category reaches its threshold.

        None if the bundle has no threshold.
        """
        manifest = self.bundle.manifest
        if manifest.threshold is None:
            return None
        if scores[best] >= manifest.threshold:
            return True
        category_threshold = manifest.category_threshold
        if category_threshold is None:
            return False
        return self._categories.narrowest(scores, best) >= category_threshold

    def _check_signature(self) -> None:
        """Compare names, types and shapes of the network with the manifest. Raises BundleError."""
        manifest, identity = self.bundle.manifest, self.bundle.identity
        spec = manifest.input
        if spec.batch not in (None, 1):
            raise BundleError(f"{identity}: a fixed batch of {spec.batch} is not supported.")
        inputs = {each.name: each for each in self._session.get_inputs()}
        if set(inputs) != {spec.name}:
            raise BundleError(f"{identity}: inputs are {_names(inputs)}, not {spec.name}.")
        if inputs[spec.name].type != "tensor(float)":
            raise BundleError(f"{identity}: {spec.name} is not float32.")
        picture = (3, spec.height, spec.width)
        if spec.layout == "NHWC":
            picture = (spec.height, spec.width, 3)
        shape = inputs[spec.name].shape
        if not _fits(shape, (spec.batch, *picture)):
            raise BundleError(
                f"{identity}: {spec.name} has the shape {shape}, unlike the manifest's input."
            )
        outputs = {each.name: each for each in self._session.get_outputs()}
        for name in filter(None, (manifest.outputs.scores, manifest.outputs.embedding)):
            if name not in outputs:
                raise BundleError(f"{identity}: outputs are {_names(outputs)}, without {name}.")

    def _warm_up(self) -> None:
        """Run once: this allocates buffers and checks the number of scores. Raises BundleError."""
        spec = self.bundle.manifest.input
        picture = (3, spec.height, spec.width)
        if spec.layout == "NHWC":
            picture = (spec.height, spec.width, 3)
        try:
            self._scores(np.zeros((1, *picture), np.float32))
        except InferenceFailed as error:
            raise BundleError(f"{self.bundle.identity}: {error.detail}") from error


class _CategoryIndex:
    """Sums the probabilities of each category's labels."""

    def __init__(self, bundle: Bundle) -> None:
        number = {label: index for index, label in enumerate(bundle.labels)}
        members: dict[str, list[int]] = {}
        for label, categories in bundle.categories.items():
            for category in categories:
                members.setdefault(category, []).append(number[label])
        # The narrowest first, so that a stable sort puts them before broader ones.
        self._names = sorted(members, key=lambda name: (len(members[name]), name))
        self._members = np.zeros((len(self._names), len(bundle.labels)))
        for row, name in enumerate(self._names):
            self._members[row, members[name]] = 1

    def narrowest(self, scores: NDArray[np.float64], label: int) -> float:
        """The summed scores of the narrowest category of `label`; 0 if it has none."""
        rows = np.flatnonzero(self._members[:, label])
        return float(self._members[rows[0]] @ scores) if rows.size else 0.0

    def best(self, scores: NDArray[np.float64]) -> tuple[Annotation, ...]:
        """The most likely categories, most likely first; those below 0.5 % are left out.

        A broader category is never less likely than a narrower one inside it. The order is
        therefore by whole percent, and then by the number of labels: "dog" comes before "animal".
        """
        # Scores of a model with independent labels may sum to more than 1.
        sums = np.minimum(self._members @ scores, 1.0)
        percent = np.rint(100 * sums)
        order = np.argsort(-percent, kind="stable")[:MAX_CATEGORIES]
        return tuple(
            Annotation(index, self._names[row], float(sums[row]))
            for index, row in enumerate((row for row in order if percent[row] >= 1), start=1)
        )


def _session(model: Path) -> ort.InferenceSession:
    """Load the network from the file `model` alone.

    ONNX Runtime also reads weights from other files in the same folder, which the bundle's identity
    does not cover. It therefore gets a link to the file in an empty folder.
    """
    with TemporaryDirectory(prefix="glimpse-") as empty:
        link = Path(empty) / MODEL_FILE
        link.symlink_to(model.resolve())
        return ort.InferenceSession(
            str(link), _session_options(), providers=["CPUExecutionProvider"]
        )


def _session_options() -> ort.SessionOptions:
    """One thread for each inference: images run in parallel, and idle threads must not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _WARNING
    # x86 processors without VNNI add products of uint8 and int8 in 16 bits, which can overflow and
    # change the labels of a quantized model. With this option they multiply by uint8 weights, which
    # is slower and exact. Other processors ignore it.
    options.add_session_config_entry("session.x64quantprecision", "1")
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


def _fits(shape: list[int | str | None], declared: tuple[int | None, ...]) -> bool:
    """Whether a network's shape allows the declared one. A free axis is a name or None."""
    return len(shape) == len(declared) and all(
        # A free axis accepts any size, a fixed one only its own.
        not isinstance(axis, int) or axis == number
        for axis, number in zip(shape, declared, strict=True)
    )


def _names(mapping: dict[str, object]) -> str:
    return ", ".join(sorted(mapping)) or "none"
