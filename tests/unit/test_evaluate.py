"""The figures of an evaluation, from hand-made guesses and over a real bundle."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from core.bundles.bundle import read_bundle
from models.evaluate import evaluation, guess, labelled_files, main, read_evaluation, show
from models.metrics import calibration_error, class_scores, confusions, timing, top_k
from tests.support.bundles import COLOURS, write_colour_bundle
from tests.support.tiny_imagenet import write_tiny_imagenet

LABELS = ("cat", "dog", "fish")
# Six pictures: the true class, and three guesses each.
TRUTH = np.array([0, 0, 1, 1, 1, 2])
RANKED = np.array([[0, 1, 2], [1, 0, 2], [0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]])


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in COLOURS[colour])
    return red, green, blue


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five pictures, of which one shows red and is filed under blue."""
    shown_as = [("red", "red"), ("green", "green"), ("blue", "blue"), ("red", "blue")]
    shown_as.append(("white", "white"))
    return write_tiny_imagenet(
        tmp_path / "data",
        {colour: rgb(colour) for colour in COLOURS},
        val=[(rgb(shown), label) for shown, label in shown_as],
    )


def test_top_k_counts_pictures_whose_class_is_among_the_first_k() -> None:
    assert top_k(RANKED, TRUTH, 1) == pytest.approx(50)
    assert top_k(RANKED, TRUTH, 2) == pytest.approx(500 / 6)
    assert top_k(RANKED, TRUTH, 3) == pytest.approx(100)


def test_class_scores_are_of_each_class_alone_and_weakest_first() -> None:
    scores = class_scores(RANKED, TRUTH, LABELS)
    assert [(each.label, each.pictures) for each in scores] == [("dog", 3), ("cat", 2), ("fish", 1)]
    assert [each.top1 for each in scores] == pytest.approx([100 / 3, 50, 100])


def test_a_class_without_pictures_has_no_score() -> None:
    scores = class_scores(RANKED[:2], TRUTH[:2], LABELS)
    assert [each.label for each in scores] == ["cat"]


def test_confusions_count_wrong_first_guesses_most_frequent_first() -> None:
    pairs = confusions(RANKED, TRUTH, LABELS, limit=5)
    assert [(each.label, each.guess, each.count, each.pictures) for each in pairs] == [
        ("dog", "cat", 2, 3),
        ("cat", "dog", 1, 2),
    ]
    assert len(confusions(RANKED, TRUTH, LABELS, limit=1)) == 1


def test_calibration_error_is_the_gap_between_stated_and_real() -> None:
    right = np.array([True, True, True, False])
    assert calibration_error(np.full(4, 0.75), right) == pytest.approx(0)
    assert calibration_error(np.full(4, 0.95), right) == pytest.approx(20)
    assert calibration_error(np.full(4, 1.0), np.full(4, True)) == pytest.approx(0)
    # Two bins whose errors have opposite signs do not cancel.
    confidence, half = np.array([0.2, 0.2, 0.8, 0.8]), np.array([True, False, True, False])
    assert calibration_error(confidence, half) == pytest.approx(30)


def test_timing_gives_median_and_95th_percentile() -> None:
    times = timing(np.arange(1.0, 102.0))
    assert (times.median, times.p95) == (51, 96)


def test_a_bundle_is_measured_on_picture_files(data: Path, tmp_path: Path) -> None:
    bundle = read_bundle(write_colour_bundle(tmp_path / "bundle"))
    files, truth = labelled_files(bundle, data, None)
    result = evaluation(bundle, guess(bundle, files), truth)
    assert (result.bundle, result.pictures) == (bundle.identity, 5)
    assert result.top1 == pytest.approx(80)
    assert [(each.label, each.guess, each.count) for each in result.confusions] == [
        ("blue", "red", 1)
    ]
    assert result.classes[0].label == "blue"
    assert result.onnx_bytes == (tmp_path / "bundle" / "model.onnx").stat().st_size
    assert 0 < result.inference_ms.median <= result.picture_ms.median


def test_a_limit_spreads_over_the_split(data: Path, tmp_path: Path) -> None:
    bundle = read_bundle(write_colour_bundle(tmp_path / "bundle"))
    files, truth = labelled_files(bundle, data, 3)
    assert [file.name for file in files] == ["val_0.JPEG", "val_2.JPEG", "val_4.JPEG"]
    assert [bundle.labels[index] for index in truth] == ["red", "blue", "white"]


def test_a_bundle_of_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    bundle = read_bundle(write_colour_bundle(tmp_path / "bundle"))
    (data / "wnids.txt").write_text("n00000002\nn00000001\n")
    with pytest.raises(SystemExit, match="does not have the classes"):
        labelled_files(bundle, data, None)


def test_the_command_prints_tables_and_writes_json(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_colour_bundle(tmp_path / "bundle"), tmp_path / "figures.json"
    arguments = ["evaluate", "--bundle", str(folder), "--data", str(data), "--json", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    printed = capsys.readouterr().out
    assert read_bundle(folder).identity in printed
    assert "80.00 %" in printed
    result = read_evaluation(out.read_bytes())
    assert result.top1 == pytest.approx(80)
    assert json.loads(out.read_text())["classes"][0]["label"] == "blue"
    console = Console(file=io.StringIO(), width=120)
    show(result, console)  # what was read back is what was shown
    assert "Most frequent confusions" in printed


def test_a_damaged_bundle_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_colour_bundle(tmp_path / "bundle")
    (folder / "model.onnx").write_bytes(b"not a network")
    arguments = ["evaluate", "--bundle", str(folder), "--data", str(data)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match=r"model\.onnx"):
        main()
