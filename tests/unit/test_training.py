"""What training reads, on a made-up data set. Training itself is tested in tests/export."""

from pathlib import Path

import numpy as np
import pytest

from models import tiny_imagenet
from tests.support.tiny_imagenet import write_tiny_imagenet

RED, BLUE = (200, 30, 30), (30, 30, 200)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_imagenet(
        tmp_path / "data",
        {"red": RED, "blue": BLUE},
        train=3,
        val=[(BLUE, "blue"), (RED, "red"), (BLUE, "blue")],
    )


def test_classes_are_in_the_order_of_wnids_and_named_by_the_first_synonym(data: Path) -> None:
    assert tiny_imagenet.class_ids(data) == ["n00000001", "n00000002"]
    assert tiny_imagenet.class_labels(data) == ["red", "blue"]


def test_labels_follow_wnids_where_words_are_in_another_order(data: Path) -> None:
    (data / "wnids.txt").write_text("n00000002\nn00000001\n")
    assert tiny_imagenet.class_labels(data) == ["blue", "red"]


def test_training_pictures_take_their_class_from_their_folder(data: Path) -> None:
    files, labels = tiny_imagenet._listing(data, "train")
    assert [file.parent.parent.name for file in files] == ["n00000001"] * 3 + ["n00000002"] * 3
    assert labels == [0, 0, 0, 1, 1, 1]


def test_validation_pictures_take_their_class_from_the_annotations(data: Path) -> None:
    files, labels = tiny_imagenet._listing(data, "val")
    assert [file.name for file in files] == ["val_0.JPEG", "val_1.JPEG", "val_2.JPEG"]
    assert labels == [1, 0, 1]


def test_loaded_pictures_match_their_labels_and_come_back_from_the_cache(
    data: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    loaded = tiny_imagenet.load(data, "val", cache)
    assert loaded.images.shape == (3, 64, 64, 3)
    assert loaded.images.dtype == np.uint8
    # The strongest channel is the colour's: 2 is blue, 0 is red.
    assert loaded.images.mean((1, 2)).argmax(1).tolist() == [2, 0, 2]
    for file in (data / "val" / "images").iterdir():
        file.unlink()
    again = tiny_imagenet.load(data, "val", cache)
    assert np.array_equal(again.images, loaded.images)
    assert np.array_equal(again.labels, loaded.labels)
