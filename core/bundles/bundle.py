"""A model bundle: a folder with `model.onnx`, `model.json`, `labels.txt` and `MODEL_CARD.md`.

It may also have `categories.json`. All functions block. `core.backends.bundles` finds bundles that
are stored elsewhere.

`SHA256SUMS` (the format of sha256sum) lists the digests of the files that decide the answer: all
but the card. The bundle's identity is `name@` and the first 12 hex digits of the SHA-256 over those
digests. So the API knows the identity without reading the weights, and the worker verifies the
files when it loads them.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from core.errors import BundleError

MODEL_FILE, MANIFEST_FILE, LABELS_FILE = "model.onnx", "model.json", "labels.txt"
SUMS_FILE = "SHA256SUMS"
CATEGORIES_FILE = "categories.json"
CARD_FILE = "MODEL_CARD.md"
REQUIRED_FILES = (MODEL_FILE, MANIFEST_FILE, LABELS_FILE)
SUMMED_FILES = (*REQUIRED_FILES, CATEGORIES_FILE)

MAX_CARD_BYTES = 256 * 1024
MAX_LABEL_LENGTH = 200  # characters

_DIGEST = re.compile(r"[0-9a-f]{64}")

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
PositiveInt = Annotated[int, Field(ge=1)]
Channels = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
Category = Annotated[str, Field(min_length=1, max_length=100)]
Categories = dict[str, tuple[Category, ...]]


class Frozen(BaseModel):
    """A document of a bundle. Unknown members are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(Frozen):
    """The picture tensor: float32, RGB. `batch` is the fixed batch size, or null if it is free."""

    name: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    height: PositiveInt
    width: PositiveInt
    batch: PositiveInt | None = None


class ResizeRule(Frozen):
    """How a picture of any size becomes `height` x `width`.

    `stretch` ignores the aspect ratio. `crop` scales the shorter side to `short_side` and takes
    the centre.
    """

    method: Literal["stretch", "crop"]
    short_side: PositiveInt | None = None
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"


class OutputSpec(Frozen):
    """`scores` is the output with one number a label; `embedding` may be absent."""

    scores: str
    kind: Literal["logits", "probabilities"]
    embedding: str | None = None


class BundleManifest(Frozen):
    """`model.json`. A pixel value v in 0..255 enters the network as (v * rescale - mean) / std.

    The best label counts as confident if its confidence is at least `threshold`, or if that of its
    narrowest category is at least `category_threshold`: the label is then at worst a close relative
    of the right one, such as another breed of dog.
    """

    name: ModelName
    input: InputSpec
    resize: ResizeRule
    rescale: float = 1 / 255
    mean: Channels
    std: Channels
    outputs: OutputSpec
    opset: PositiveInt | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    category_threshold: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.category_threshold is not None and self.threshold is None:
            raise ValueError("category_threshold needs a threshold")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle without its weights.

    `categories` has the broader labels of each label; it is empty if the bundle has none.
    """

    folder: Path
    manifest: BundleManifest
    labels: tuple[str, ...]
    identity: str
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_bundle(uri: str | Path) -> Bundle:
    """Read a bundle without its weights. Raises BundleError."""
    folder = Path(uri)
    try:
        manifest = BundleManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise BundleError(f"{folder} is not a model bundle: {error.strerror}.") from error
    except ValidationError as error:
        raise BundleError(f"{folder / MANIFEST_FILE} is invalid: {first_error(error)}") from error
    labels = read_labels(folder)
    categories = _categories(folder, labels)
    sums = recorded_sums(folder) or _computed_sums(folder)
    if categories and CATEGORIES_FILE not in sums:
        raise BundleError(f"{folder / SUMS_FILE} does not list {CATEGORIES_FILE}.")
    identity = f"{manifest.name}@{digest_of(sums)[:12]}"
    return Bundle(folder, manifest, labels, identity, categories)


def read_labels(folder: Path) -> tuple[str, ...]:
    """The labels in `labels.txt`, which may begin with a byte order mark. Raises BundleError."""
    file = folder / LABELS_FILE
    try:
        labels = tuple(file.read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8.") from error
    if not labels or not all(label.strip() for label in labels):
        raise BundleError(f"{file} needs one label a line.")
    if max(map(len, labels)) > MAX_LABEL_LENGTH:
        raise BundleError(f"{file} has a label of more than {MAX_LABEL_LENGTH} characters.")
    return labels


def read_card(folder: Path) -> str:
    """The model card, at most its first `MAX_CARD_BYTES`; empty if there is none. Blocks."""
    try:
        with (folder / CARD_FILE).open("rb") as file:
            return file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _categories(folder: Path, labels: tuple[str, ...]) -> Categories:
    """The content of `categories.json`; empty if there is no such file. Raises BundleError."""
    file = folder / CATEGORIES_FILE
    try:
        categories = TypeAdapter(Categories).validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}.") from error
    except ValidationError as error:
        raise BundleError(f"{file} is invalid: {first_error(error)}") from error
    unknown = sorted(categories.keys() - set(labels))
    if unknown:
        raise BundleError(f"{file} names {unknown[0]!r}, which is not a label.")
    return categories


def first_error(error: ValidationError) -> str:
    """The first problem of a document in one line."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}." if where else f"{message}."


def verify_bundle(bundle: Bundle) -> None:
    """Raise BundleError if a file differs from its digest in `SHA256SUMS`."""
    recorded = recorded_sums(bundle.folder)
    if recorded is None:
        return
    computed = _computed_sums(bundle.folder)
    wrong = [name for name in SUMMED_FILES if recorded.get(name) != computed.get(name)]
    if wrong:
        raise BundleError(f"{bundle.folder}: {', '.join(wrong)} differ from {SUMS_FILE}.")


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` for a finished bundle folder."""
    (folder / SUMS_FILE).write_text(sums_text(_computed_sums(folder)), encoding="utf-8")


def recorded_sums(folder: Path) -> dict[str, str] | None:
    """The digests in `SHA256SUMS`, or None if the folder has no such file. Raises BundleError."""
    try:
        text = (folder / SUMS_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / SUMS_FILE}: {error.strerror}.") from error
    return parse_sums(text, str(folder / SUMS_FILE))


def parse_sums(text: bytes, where: str) -> dict[str, str]:
    """The digests of the bundle's files in `SHA256SUMS`. Raises BundleError that names `where`."""
    lines = text.decode("ascii", errors="replace").splitlines()
    named = {
        name.strip().lstrip("*"): digest for digest, _, name in (x.partition(" ") for x in lines)
    }
    expected = [name for name in SUMMED_FILES if name in named or name in REQUIRED_FILES]
    missing = [name for name in expected if not _DIGEST.fullmatch(named.get(name, ""))]
    if missing:
        raise BundleError(f"{where} lacks {', '.join(missing)}.")
    return {name: named[name] for name in expected}


def sums_text(sums: Mapping[str, str]) -> str:
    """`SHA256SUMS` of these digests."""
    return "".join(f"{sums[name]}  {name}\n" for name in SUMMED_FILES if name in sums)


def digest_of(sums: Mapping[str, str]) -> str:
    """64 hex digits that identify a bundle. Its identity has the first 12."""
    lines = "".join(f"{sums[name]}\n" for name in SUMMED_FILES if name in sums)
    return hashlib.sha256(lines.encode()).hexdigest()


def _computed_sums(folder: Path) -> dict[str, str]:
    sums = {}
    for name in SUMMED_FILES:
        try:
            sums[name] = file_sum(folder / name)
        except FileNotFoundError as error:
            if name in REQUIRED_FILES:
                raise BundleError(f"{folder / name}: {error.strerror}.") from error
        except OSError as error:
            raise BundleError(f"{folder / name}: {error.strerror}.") from error
    return sums


def file_sum(path: Path) -> str:
    """A file's SHA-256 in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
