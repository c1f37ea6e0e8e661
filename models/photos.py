"""Labelled photos for measuring a bundle.

A folder with photos and `photos.tsv`, which has a row for each: file name, and the labels that are
right for it, separated by "; ". A photo of something without a label in the bundle has none. A
third column may name close relatives of what the photo shows, such as other breeds of dog. They are
wrong, but mislead less than other labels.
"""

from pathlib import Path
from typing import NamedTuple

LISTING = "photos.tsv"


class Photo(NamedTuple):
    """A file, the labels that are right for it, and those of close relatives."""

    file: Path
    labels: frozenset[str]
    relatives: frozenset[str] = frozenset()


def read_photos(folder: Path) -> list[Photo]:
    """The photos that the folder's listing names, in its order. Raises ValueError or OSError."""
    found = []
    for number, line in enumerate((folder / LISTING).read_text("utf-8").splitlines(), start=1):
        name, *columns = line.split("\t")
        if not name or len(columns) not in (1, 2):
            raise ValueError(
                f"{folder / LISTING}, line {number}: a name, a tab and labels expected"
            )
        labels, relatives = (
            frozenset(filter(None, column.split("; "))) for column in (*columns, "")[:2]
        )
        found.append(Photo(folder / name, labels, relatives - labels))
    if not found:
        raise ValueError(f"{folder / LISTING} names no photos")
    return found


def check_labels(photos: list[Photo], labels: tuple[str, ...]) -> None:
    """Raise ValueError if a photo has a label that is not among `labels`."""
    named = (photo.labels | photo.relatives for photo in photos)
    unknown = frozenset[str]().union(*named) - set(labels)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is not a label of the bundle")
