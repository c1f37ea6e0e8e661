"""A made-up data set in Tiny ImageNet's folder layout: one colour a class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.pictures import picture

Colour = tuple[int, int, int]


def write_tiny_imagenet(
    root: Path,
    colours: Mapping[str, Colour],
    *,
    train: int = 0,
    val: Sequence[tuple[Colour, str]] = (),
) -> Path:
    """Write the data set to `root` and return it.

    `train` is the number of training pictures of each class; `val` lists the validation pictures
    as what they show and the class they are filed under.
    """
    ids = {label: f"n{number:08d}" for number, label in enumerate(colours, start=1)}
    root.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in ids.values()))
    words = ["n99999999\tnothing, of this data set", *(f"{w}\t{x}, {x}s" for x, w in ids.items())]
    (root / "words.txt").write_text("\n".join(words) + "\n")
    for label, wnid in ids.items():
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for number in range(train):
            data = picture(number, colours[label], (64, 64))
            (folder / f"{wnid}_{number}.JPEG").write_bytes(data)
    folder = root / "val" / "images"
    folder.mkdir(parents=True)
    rows = []
    for number, (colour, label) in enumerate(val):
        (folder / f"val_{number}.JPEG").write_bytes(picture(1000 + number, colour, (64, 64)))
        rows.append(f"val_{number}.JPEG\t{ids[label]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return root
