"""Tiny ImageNet in the folder layout of the public archive, as arrays in memory.

tiny-imagenet-200/
  wnids.txt  words.txt
  train/<wnid>/images/*.JPEG
  val/images/*.JPEG  val/val_annotations.txt
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

SIDE = 64


@dataclass(frozen=True)
class Split:
    """`images` is uint8 (N, 64, 64, 3) in RGB, `labels` int64 (N,) indexing the class list."""

    images: np.ndarray
    labels: np.ndarray


def class_ids(data: Path) -> list[str]:
    """WordNet ids in the order that fixes the class index (`wnids.txt`)."""
    return (data / "wnids.txt").read_text().split()


def class_labels(data: Path) -> list[str]:
    """One plain label a class: the first synonym of each id in `words.txt`."""
    rows = (line.split("\t", 1) for line in (data / "words.txt").read_text().splitlines())
    words = {wnid: synonyms.split(",")[0].strip() for wnid, synonyms in rows}
    return [words[wnid] for wnid in class_ids(data)]


def load(data: Path, split: str, cache: Path | None = None) -> Split:
    """Read `train` or `val`; with `cache`, decoded pictures are kept there as one .npz."""
    cached = cache / f"tiny-imagenet-{split}.npz" if cache else None
    if cached and cached.exists():
        with np.load(cached) as arrays:
            return Split(arrays["images"], arrays["labels"])
    files, labels = _listing(data, split)
    images = np.stack([_decode(f) for f in track(files, f"decoding {split}", total=len(files))])
    loaded = Split(images, np.array(labels, dtype=np.int64))
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cached, images=loaded.images, labels=loaded.labels)
    return loaded


def _listing(data: Path, split: str) -> tuple[list[Path], list[int]]:
    index = {wnid: i for i, wnid in enumerate(class_ids(data))}
    pairs: Iterable[tuple[Path, int]]
    if split == "train":
        pairs = [
            (file, index[wnid])
            for wnid in index
            for file in sorted((data / "train" / wnid / "images").glob("*.JPEG"))
        ]
    else:
        rows = (r.split("\t") for r in (data / "val/val_annotations.txt").read_text().splitlines())
        pairs = [(data / "val/images" / row[0], index[row[1]]) for row in rows]
    files, labels = zip(*pairs, strict=True)
    return list(files), list(labels)


def _decode(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
