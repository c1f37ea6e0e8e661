"""Writes a bundle folder completely or not at all."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from core.bundles.bundle import (
    CATEGORIES_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Bundle,
    BundleManifest,
    read_bundle,
    verify_bundle,
    write_sums,
)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that replaces `out` if the block ends without an error.

    Replaces only a bundle or an empty folder; raises FileExistsError for anything else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise FileExistsError(f"{out} exists and is not a model bundle; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        folder = Path(work) / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.replace(Path(work) / "old")
        folder.replace(out)


def write_bundle(
    folder: Path,
    model: onnx.ModelProto,
    manifest: BundleManifest,
    labels: Sequence[str],
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Bundle:
    """Write the files that decide a bundle's identity, and read it back."""
    (folder / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    document = manifest.model_dump_json(indent=2, exclude_none=True)
    (folder / MANIFEST_FILE).write_text(document + "\n", encoding="utf-8")
    (folder / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    if categories:
        write_json(folder / CATEGORIES_FILE, categories)
    write_sums(folder)
    bundle = read_bundle(folder)
    verify_bundle(bundle)
    return bundle


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Write indented JSON with a final newline."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """The size of everything in `folder`, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
