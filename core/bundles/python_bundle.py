"""A bundle in Python: a folder with `predictor.py`, `model.json` and whatever the predictor needs.

It has no `model.onnx`. `predictor.py` has a class `Predictor`, which `worker.inference.predictor`
loads in the classifier processes. `labels.txt` and `requirements.txt` are optional. All functions
block.

`SHA256SUMS` lists every file of the folder but the card, and the bundle's identity is `name@` and
the first 12 hex digits of the SHA-256 over that list. A bundle in Python is a local folder: the
operator installs its requirements beside the worker, and so decides which code the worker runs.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from core.bundles.bundle import (
    CARD_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SUMS_FILE,
    Bundle,
    Frozen,
    ModelName,
    file_sum,
    first_error,
    read_bundle,
    read_labels,
)
from core.errors import BundleError

PREDICTOR_FILE, REQUIREMENTS_FILE = "predictor.py", "requirements.txt"
MAX_FILES = 1000
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


class PythonManifest(Frozen):
    """`model.json`. Images have at most `max_side` pixels a side when the predictor gets them.

    `threshold` is the confidence from which the best label counts as confident.
    """

    name: ModelName
    max_side: Annotated[int, Field(ge=1, le=8192)] = 1024
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class PythonBundle:
    """A bundle whose predictor is not loaded. `labels` are those of `labels.txt`, if it exists."""

    folder: Path
    manifest: PythonManifest
    labels: tuple[str, ...]
    identity: str
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


AnyBundle = Bundle | PythonBundle


def read_any_bundle(uri: str | Path) -> AnyBundle:
    """Read a bundle of either kind, without its weights. Raises BundleError."""
    folder = Path(uri)
    if not (folder / PREDICTOR_FILE).exists():
        return read_bundle(folder)
    if (folder / MODEL_FILE).exists():
        raise BundleError(
            f"{folder} has both {PREDICTOR_FILE} and {MODEL_FILE}. Delete one, or rename "
            f"{MODEL_FILE} if the predictor reads it."
        )
    return read_python_bundle(folder)


def read_python_bundle(folder: Path) -> PythonBundle:
    """Read a bundle in Python without loading its predictor. Raises BundleError."""
    try:
        manifest = PythonManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST_FILE}: {error.strerror}.") from error
    except ValidationError as error:
        raise BundleError(f"{folder / MANIFEST_FILE} is invalid: {first_error(error)}") from error
    recorded = _recorded(folder)
    sums = recorded if recorded is not None else sums_of(folder)
    identity = f"{manifest.name}@{hashlib.sha256(_text(sums).encode()).hexdigest()[:12]}"
    labels = read_labels(folder) if (folder / LABELS_FILE).exists() else ()
    return PythonBundle(folder, manifest, labels, identity)


def verify_python_bundle(bundle: PythonBundle) -> None:
    """Raise BundleError if a file differs from `SHA256SUMS`, is missing, or is not listed."""
    recorded = _recorded(bundle.folder)
    if recorded is None:
        return
    found = sums_of(bundle.folder)
    wrong = sorted(
        name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name)
    )
    if wrong:
        raise BundleError(
            f"{bundle.folder}: {', '.join(wrong[:5])} differ from {SUMS_FILE}. "
            f"Run `make bundle DIR={bundle.folder}` if you changed them."
        )


def write_python_sums(folder: Path) -> None:
    """Write `SHA256SUMS` for a finished bundle. Raises BundleError."""
    (folder / SUMS_FILE).write_text(_text(sums_of(folder)), encoding="utf-8")


def sums_of(folder: Path) -> dict[str, str]:
    """The digest of each file by its path in the folder, without hidden files and caches.

    Raises BundleError.
    """
    sums: dict[str, str] = {}
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            parts = name.split("/")
            if name in (SUMS_FILE, CARD_FILE) or "__pycache__" in parts or not path.is_file():
                continue
            if any(part.startswith(".") for part in parts):
                continue
            if "\n" in name:
                raise BundleError(f"{folder} has a file whose name has a line break.")
            sums[name] = file_sum(path)
            if len(sums) > MAX_FILES:
                raise BundleError(f"{folder} has more than {MAX_FILES} files.")
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}.") from error
    return sums


def _text(sums: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def _recorded(folder: Path) -> dict[str, str] | None:
    """The digests in `SHA256SUMS`, or None if there is no such file. Raises BundleError."""
    try:
        text = (folder / SUMS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / SUMS_FILE}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / SUMS_FILE} is not UTF-8.") from error
    sums = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            raise BundleError(f"{folder / SUMS_FILE} has an invalid line.")
        sums[found[2]] = found[1]
    return sums
