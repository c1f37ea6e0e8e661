"""`make bundle DIR=…`: checks a bundle, writes its `SHA256SUMS`, and names a fault in one line.

It loads the bundle as a classifier process does, and classifies a generated picture. For a folder
with `model.onnx` and `labels.txt` alone, it first writes a `model.json` with what the network
declares, and ImageNet's usual normalisation, for you to correct.
"""

import argparse
import io
import json
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from core.bundles.bundle import (
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SUMS_FILE,
    Bundle,
    read_bundle,
    read_labels,
    write_sums,
)
from core.bundles.python_bundle import (
    PREDICTOR_FILE,
    PythonBundle,
    read_any_bundle,
    read_python_bundle,
    write_python_sums,
)
from core.domain.records import MAX_LABELS, Classification
from core.errors import BundleError, GlimpseError
from worker.inference.classifier import Classifier
from worker.inference.memory_limit import memory_limit
from worker.inference.predictor import PythonClassifier
from worker.inference.preprocessing import MemoryLimit, no_memory_limit

MAX_PIXELS = 50_000_000
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
DEFAULT_SIDE = 224
# To import and load a predictor, and for one prediction.
PREDICTOR_SECONDS = 150.0


def check(
    folder: Path, limit: MemoryLimit = no_memory_limit
) -> tuple[Bundle | PythonBundle, Classification]:
    """Check and sum the bundle; also what it says about a generated picture.

    `limit` bounds the memory of a prediction. Raises GlimpseError, whose detail names the fault.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder.")
    if not (folder / PREDICTOR_FILE).exists() and not (folder / MODEL_FILE).exists():
        raise BundleError(f"{folder} has neither {MODEL_FILE} nor {PREDICTOR_FILE}.")
    (folder / SUMS_FILE).unlink(missing_ok=True)
    if not (folder / PREDICTOR_FILE).exists():
        if not (folder / LABELS_FILE).exists():
            raise BundleError(
                f"{folder} has no {LABELS_FILE}: one label a line, in the order of the scores."
            )
        if not (folder / MANIFEST_FILE).exists():
            write_manifest(folder)
    bundle = read_any_bundle(folder)
    options: dict[str, Any] = {"max_pixels": MAX_PIXELS, "labels_per_image": MAX_LABELS}
    if isinstance(bundle, PythonBundle):
        found = PythonClassifier(bundle, memory_limit=limit, **options).classify(_picture())
        write_python_sums(folder)
        return read_python_bundle(folder), found
    found = Classifier(bundle, **options).classify(_picture())
    write_sums(folder)
    return read_bundle(folder), found


def check_apart(
    folder: Path, seconds: float = PREDICTOR_SECONDS
) -> tuple[Bundle | PythonBundle, Classification]:
    """As `check`, in another process for a bundle in Python, with its limits on time and memory.

    A predictor may end its process, or never return.
    """
    file = folder / PREDICTOR_FILE
    if not file.exists():
        return check(folder)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(folder, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise BundleError(f"{file}: a prediction took longer than {seconds:g} s.")
        outcome = ours.recv()
    except EOFError:
        raise BundleError(f"{file} ended its process.") from None
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, Exception):
        raise outcome
    bundle, found = outcome
    return bundle, found


def _send_outcome(folder: Path, connection: Connection) -> None:
    """Send the result of `check`, or its error."""
    try:
        connection.send(check(folder, memory_limit))
    except (GlimpseError, OSError) as error:
        connection.send(error)


def write_manifest(folder: Path) -> None:
    """Write a `model.json` with what the network declares. Raises BundleError."""
    labels = len(read_labels(folder))
    try:
        session = ort.InferenceSession(str(folder / MODEL_FILE), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"{folder / MODEL_FILE}: ONNX Runtime cannot load it.") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise BundleError(f"{folder / MODEL_FILE} has no single input of four dimensions.")
    if inputs[0].type != "tensor(float)":
        raise BundleError(
            f"{folder / MODEL_FILE}: the input {inputs[0].name} is a {inputs[0].type}, not float32."
        )
    shape = list(inputs[0].shape)
    if isinstance(shape[0], int) and shape[0] != 1:
        raise BundleError(
            f"{folder / MODEL_FILE} has a fixed batch of {shape[0]}. Export it with a batch of 1, "
            "or with a free batch."
        )
    layout = "NHWC" if shape[3] == 3 else "NCHW"
    sides = shape[1:3] if layout == "NHWC" else shape[2:]
    height, width = (side if isinstance(side, int) else DEFAULT_SIDE for side in sides)
    scores = [each.name for each in session.get_outputs() if list(each.shape)[-1:] == [labels]]
    names = ", ".join(each.name for each in session.get_outputs())
    if not scores:
        raise BundleError(
            f"{folder / MODEL_FILE} has no output with {labels} numbers, one for each line of "
            f"{LABELS_FILE}. Its outputs are {names}."
        )
    picture = (height, width, 3) if layout == "NHWC" else (3, height, width)
    manifest = {
        "name": _name(folder),
        "input": {
            "name": inputs[0].name,
            "layout": layout,
            "height": height,
            "width": width,
            "batch": shape[0] if isinstance(shape[0], int) else None,
        },
        "resize": {"method": "stretch", "resample": "bilinear"},
        **IMAGENET,
        "outputs": {"scores": scores[0], "kind": _kind(session, picture, scores[0])},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {folder / MANIFEST_FILE}: check its resize rule, mean and std")


def _kind(session: ort.InferenceSession, picture: tuple[int, ...], scores: str) -> str:
    """`probabilities` if the scores of noise are not negative and sum to 1, else `logits`."""
    name = session.get_inputs()[0].name
    noise = np.random.default_rng(0).normal(size=(1, *picture)).astype(np.float32)
    try:
        (found,) = session.run([scores], {name: noise})
    except Exception as error:
        raise BundleError(
            f"The network fails on an input of {' x '.join(map(str, noise.shape))}."
        ) from error
    values = np.asarray(found, np.float64)
    sums_to_one = abs(float(values.sum()) - 1) < 1e-3
    return "probabilities" if values.min() >= 0 and sums_to_one else "logits"


def _name(folder: Path) -> str:
    """The folder's name with the characters that a model's name may have."""
    name = "".join(each if each.isalnum() or each in "._-" else "-" for each in folder.name)
    ascii_name = name.encode("ascii", errors="ignore").decode().lstrip("._-")
    return ascii_name[:63] or "model"


def _picture() -> bytes:
    """A PNG of 640 x 480 pixels with a gradient of every channel."""
    x, y = np.meshgrid(np.linspace(0, 255, 640), np.linspace(0, 255, 480))
    pixels = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    try:
        bundle, found = check_apart(folder.resolve())
    except GlimpseError as error:
        raise SystemExit(error.detail) from None
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}.") from None
    best = f"{found.best} ({found.annotations[0].confidence:.0%})" if found.best else "no label"
    output = f", output {found.output[:60]}" if found.output else ""
    sys.stdout.write(
        f"{bundle.identity} is a valid bundle. A generated picture: {best}{output}\n"
        f"Serve it: EXTRA_MODEL_URIS={bundle.folder} make run\n"
    )


if __name__ == "__main__":
    main()
