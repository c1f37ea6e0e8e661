"""Labelled photos for measuring a bundle.

A folder with photos and `photos.tsv`, which has a row for each: file name, and the labels that are
right for it, separated by "; ". A photo of something without a label in the bundle has none.
"""

from pathlib import Path
from typing import NamedTuple

LISTING = "photos.tsv"


class Photo(NamedTuple):
    """A file, and the labels that are right for it."""

    file: Path
    labels: frozenset[str]


def read_photos(folder: Path) -> list[Photo]:
    """The photos that the folder's listing names, in its order. Raises ValueError or OSError."""
    found = []
    for number, line in enumerate((folder / LISTING).read_text("utf-8").splitlines(), start=1):
        name, tab, labels = line.partition("\t")
        if not name or not tab:
            raise ValueError(
                f"{folder / LISTING}, line {number}: a name, a tab and labels expected"
            )
        found.append(Photo(folder / name, frozenset(filter(None, labels.split("; ")))))
    if not found:
        raise ValueError(f"{folder / LISTING} names no photos")
    return found


def check_labels(photos: list[Photo], labels: tuple[str, ...]) -> None:
    """Raise ValueError if a photo has a label that is not among `labels`."""
    unknown = frozenset[str]().union(*(photo.labels for photo in photos)) - set(labels)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is not a label of the bundle")
