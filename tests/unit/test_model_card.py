"""The default bundle's card has the recorded figures, of that bundle only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.bundles.bundle import read_bundle
from models.evaluate import Evaluation
from models.metrics import Timing
from models.model_card import CALIBRATION_FILE, CARD_FILE, main, read_evaluations, render
from tests.support.stack import ROOT

DEFAULT_BUNDLE = ROOT / "models/default"
BUNDLE = read_bundle(DEFAULT_BUNDLE)
CALIBRATION = json.loads(CALIBRATION_FILE.read_bytes())
FIGURES = Evaluation(
    bundle=BUNDLE.identity,
    onnx_bytes=5_000_000,
    bundle_bytes=6_012_345,
    photos=1234,
    top1=81.26,
    top5=95.04,
    mean_confidence=77.7,
    calibration_error=3.3,
    confident=71.5,
    confident_right=88.8,
    confident_close=91.2,
    inference_ms=Timing(4.56, 5.67),
    photo_ms=Timing(6.78, 7.89),
    machine="A processor",
    onnxruntime="1.2.3",
)


def test_card_has_the_recorded_figures() -> None:
    card = render(BUNDLE, CALIBRATION, {"These photos": FIGURES})
    for text in (
        *(BUNDLE.identity, "| These photos |", "| 1,234 |", "| 81.3 % |", "| 95.0 % |"),
        *("median 4.56 ms, p95 5.67 ms", "median 6.78 ms, p95 7.89 ms", "| 6.01 MB |"),
        *("| 71.5 % |", "| 88.8 % |", "| 91.2 % |", "A processor, ONNX Runtime 1.2.3"),
        f"{CALIBRATION['temperature']:.2f}",
    ):
        assert text in card


def test_card_leaves_out_figures_of_another_bundle() -> None:
    other = replace(FIGURES, bundle="another@0123456789ab")
    card = render(BUNDLE, CALIBRATION, {"These photos": other})
    assert "Not measured yet." in card
    assert "1,234" not in card


def test_without_a_file_there_are_no_figures(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path / "absent.json") == {}


def test_command_writes_the_card_into_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in DEFAULT_BUNDLE.iterdir():
        if file.name != CARD_FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("sys.argv", ["model_card", "--bundle", str(folder)])
    main()
    assert (folder / CARD_FILE).read_text() == (DEFAULT_BUNDLE / CARD_FILE).read_text()


def test_default_bundles_card_is_current_and_the_bundle_within_its_limits() -> None:
    evaluations = read_evaluations()
    card = (DEFAULT_BUNDLE / CARD_FILE).read_text(encoding="utf-8")
    assert card == render(BUNDLE, CALIBRATION, evaluations)
    assert {each.bundle for each in evaluations.values()} == {BUNDLE.identity}
    assert BUNDLE.manifest.threshold == CALIBRATION["threshold"]
    first, second, varied, held_out = evaluations.values()
    assert first.photos >= 1000
    assert first.top1 >= 89
    assert second.top5 >= 88
    for each in (first, second):
        assert each.confident_right is not None
        assert each.confident_right >= 80
    for each in (varied, held_out):
        assert each.confident_close is not None
        assert each.confident_close >= 80
    assert CALIBRATION["fit_photos"] == [each.photos for each in (first, second, varied)]
    assert CALIBRATION["agreement"][0] >= 0.97
    assert sum(file.stat().st_size for file in DEFAULT_BUNDLE.iterdir()) <= 10_000_000
