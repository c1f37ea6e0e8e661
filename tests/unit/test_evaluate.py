"""Figures of a bundle: from made-up answers, and over labelled photos."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.bundles.bundle import read_bundle, write_sums
from models.evaluate import classify, evaluation, main
from models.metrics import calibration_error, precision_threshold, timing, top_k
from models.model_card import read_evaluations
from models.photos import check_labels, read_photos
from tests.support.bundles import COLOURS, write_colour_bundle
from tests.support.pictures import picture

# Six photos: whether the labels at the three first places are right.
HITS = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]], np.bool_)


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in COLOURS[colour])
    return red, green, blue


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos: one shows red and is labelled blue, one may be called either white or grey."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = [("red", "red"), ("green", "green"), ("blue", "blue"), ("red", "blue")]
    rows.append(("white", "grey; white"))
    for number, (shown, _) in enumerate(rows):
        (folder / f"{number}.jpg").write_bytes(picture(number, rgb(shown), (64, 64)))
    listing = "".join(f"{number}.jpg\t{labels}\n" for number, (_, labels) in enumerate(rows))
    (folder / "photos.tsv").write_text(listing)
    return folder


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    folder = write_colour_bundle(tmp_path / "bundle")
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 0.5}))
    write_sums(folder)
    return folder


def test_top_k_counts_photos_with_a_right_label_among_the_first_k() -> None:
    assert top_k(HITS, 1) == pytest.approx(50)
    assert top_k(HITS, 2) == pytest.approx(500 / 6)
    assert top_k(HITS, 3) == pytest.approx(100)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    right = np.array([True, True, True, False, False, False, True])
    # In one bin 0.6 are right instead of 0.9, in the other 0.5 instead of 0.1.
    assert calibration_error(confidence, right) == pytest.approx(100 * (5 * 0.3 + 2 * 0.4) / 7)


def test_precision_threshold_is_the_least_that_reaches_the_precision() -> None:
    confidence = np.array([0.9, 0.5, 0.8, 0.7, 0.6])
    right = np.array([True, True, True, False, True])
    assert precision_threshold(confidence, right, 0.8) == 0.5  # four of five
    assert precision_threshold(confidence, right, 0.9) == 0.8
    assert precision_threshold(confidence, ~right, 0.9) is None


def test_precision_threshold_does_not_separate_ties() -> None:
    confidence, right = np.array([0.9, 0.7, 0.7]), np.array([True, True, False])
    assert precision_threshold(confidence, right, 1.0) == 0.9


def test_timing_gives_median_and_95th_percentile() -> None:
    times = timing(np.arange(101, dtype=np.float64))
    assert (times.median, times.p95) == (50, 95)


def test_bundle_is_measured_on_photos(photos: Path, bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    answers = classify(bundle, read_photos(photos))
    assert answers.labels == ["red", "green", "blue", "red", "white"]
    result = evaluation(bundle, answers)
    assert (result.bundle, result.photos) == (bundle.identity, 5)
    assert result.top1 == pytest.approx(80)
    assert result.top5 == pytest.approx(80)  # of a red photo, blue is the last of six labels
    assert (result.confident, result.confident_right) == (100, 80)
    assert result.confident_close is None
    assert result.onnx_bytes == (bundle_folder / "model.onnx").stat().st_size
    assert 0 < result.inference_ms.median <= result.photo_ms.median


def test_close_relatives_are_counted_apart_from_right_labels(
    photos: Path, bundle_folder: Path
) -> None:
    # The photos show red, green, blue, red and white.
    columns = ["red", "blue\tgreen; grey", "grey\tred", "", "white"]
    listing = "".join(f"{number}.jpg\t{labels}\n" for number, labels in enumerate(columns))
    (photos / "photos.tsv").write_text(listing)
    bundle = read_bundle(bundle_folder)
    result = evaluation(bundle, classify(bundle, read_photos(photos)))
    assert (result.confident_right, result.confident_close) == (40, 60)


def test_bundle_without_a_threshold_has_no_confident_share(photos: Path, tmp_path: Path) -> None:
    bundle = read_bundle(write_colour_bundle(tmp_path / "plain"))
    result = evaluation(bundle, classify(bundle, read_photos(photos)))
    assert (result.confident, result.confident_right) == (None, None)


def test_command_prints_a_table_and_stores_figures_by_name(
    photos: Path,
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "figures.json"
    for name in ("first", "second"):
        arguments = ["--bundle", str(bundle_folder), "--photos", str(photos), "--name", name]
        monkeypatch.setattr("sys.argv", ["evaluate", *arguments, "--json", str(out), "--answers"])
        main()
    printed = capsys.readouterr().out
    assert read_bundle(bundle_folder).identity in printed
    assert "80.00 %" in printed
    assert "3.jpg\tred\t" in printed
    figures = read_evaluations(out)
    assert list(figures) == ["first", "second"]
    assert figures["second"].top1 == pytest.approx(80)


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        ("0.jpg\tpurple\n", "'purple' is not a label"),
        ("0.jpg\n", "line 1"),
        ("", "names no photos"),
        ("absent.jpg\tred\n", "absent.jpg"),
    ],
)
def test_wrong_listing_is_refused(
    photos: Path,
    bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    listing: str,
    why: str,
) -> None:
    (photos / "photos.tsv").write_text(listing)
    arguments = ["evaluate", "--bundle", str(bundle_folder), "--photos", str(photos)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match=why):
        main()


def test_photo_without_labels_has_no_right_answer(photos: Path, bundle_folder: Path) -> None:
    (photos / "photos.tsv").write_text("0.jpg\t\n1.jpg\tgreen\n")
    bundle, listed = read_bundle(bundle_folder), read_photos(photos)
    check_labels(listed, bundle.labels)
    assert evaluation(bundle, classify(bundle, listed)).top5 == pytest.approx(50)


def test_damaged_bundle_is_refused(
    photos: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle_folder / "model.onnx").write_bytes(b"not a network")
    arguments = ["evaluate", "--bundle", str(bundle_folder), "--photos", str(photos)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match=r"model\.onnx"):
        main()
