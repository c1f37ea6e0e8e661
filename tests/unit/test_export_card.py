"""The default bundle's card says what was measured, and only of the bundle that was measured."""

from dataclasses import asdict
from pathlib import Path

import pytest

from core.bundles.bundle import Bundle, read_bundle
from core.errors import BundleError
from core.settings import DEFAULT_BUNDLE
from models.bundle_writer import write_json
from models.evaluate import Evaluation, read_evaluation
from models.metrics import ClassScore, Confusion, Timing
from models.model_card import TrainingRecord, main, read_training, render
from tests.support.bundles import write_colour_bundle

TRAINING = {
    "training_pictures": 600,
    "epochs_done": 7,
    "recipe": {
        "epochs": 9,
        "batch": 256,
        "kernel_lr": 0.04,
        "other_lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "label_smoothing": 0.1,
        "cutmix_share": 0.3,
        "cutmix_until": 0.8,
        "min_crop_area": 0.35,
        "warmup": 0.1,
        "average_decay": 0.997,
        "sides": [[0.0, 32], [0.5, 64]],
        "evaluation_side": 80,
        "seed": 0,
    },
    "shape": {
        "classes": 6,
        "stem": 48,
        "widths": [48, 96, 256],
        "depths": [2, 2, 3],
        "excite_from": 1,
    },
    "parameters": 3_685_296,
    "multiply_accumulates": 572_341_760,
    "largest_difference": 0.001173,
    "temperature": 0.71,
    "temperature_pictures": 5_000,
    "torch": "2.13.0",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_colour_bundle(tmp_path / "bundle"))


def measured(identity: str, **changes: float) -> Evaluation:
    figures = {"top1": 61.23, "mean_confidence": 55.5} | changes
    return Evaluation(
        bundle=identity,
        onnx_bytes=7_380_000,
        bundle_bytes=7_390_000,
        pictures=10_000,
        top5=84.56,
        calibration_error=5.7,
        inference_ms=Timing(5.61, 6.02),
        picture_ms=Timing(6.33, 7.01),
        machine="Some Processor",
        onnxruntime="1.31.1",
        classes=[ClassScore("plunger", 50, 12, 40), ClassScore("school bus", 50, 96, 98)],
        confusions=[Confusion("plunger", "nail", 9, 50)],
        **figures,
    )


def training() -> TrainingRecord:
    return TrainingRecord.model_validate(TRAINING)


def test_the_card_holds_the_figures(bundle: Bundle) -> None:
    card = render(bundle, training(), measured(bundle.identity))
    for figure in (
        bundle.identity,
        "10,000 validation pictures",
        "61.23 %",
        "84.56 %",
        "median 5.61 ms, p95 6.02 ms",
        "Some Processor, ONNX Runtime 1.31.1",
        "3.69 million",
        "572 million",
        "0.0012",
        "7.39 MB",
        "1 of 2 classes",
        "| plunger | 12 | 40 |",
        "| school bus | 96 | 98 |",
        "| plunger | nail | 9 of 50 |",
        "6 classes and 100 training pictures",
        "7 of 9",
        "at least 35 % of the area",
        "32, 64 pixels",
        "more often than its confidences",
        "a temperature of 0.71",
        "fitted on 5,000 of the validation",
    ):
        assert figure in card, figure


@pytest.mark.parametrize(
    ("confidence", "note"),
    [(50.0, "is right more often"), (61.0, "agree with"), (70.0, "is right less often")],
)
def test_the_card_says_how_far_to_trust_confidences(
    bundle: Bundle, confidence: float, note: str
) -> None:
    card = render(bundle, training(), measured(bundle.identity, mean_confidence=confidence))
    assert note in card


def test_figures_of_another_bundle_are_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="evaluation is of other@0123456789ab"):
        render(bundle, training(), measured("other@0123456789ab"))


def test_the_command_writes_the_card_beside_the_model(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(bundle.folder / "training.json", TRAINING)
    write_json(bundle.folder / "evaluation.json", asdict(measured(bundle.identity)))
    monkeypatch.setattr("sys.argv", ["model_card", "--bundle", str(bundle.folder)])
    main()
    card = (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == render(bundle, training(), measured(bundle.identity))
    assert read_bundle(bundle.folder).identity == bundle.identity


def test_without_an_evaluation_there_is_no_card(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(bundle.folder / "training.json", TRAINING)
    monkeypatch.setattr("sys.argv", ["model_card", "--bundle", str(bundle.folder)])
    with pytest.raises(SystemExit, match=r"evaluation\.json"):
        main()


def test_unknown_training_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs_done"):
        read_training(b'{"training_pictures": 1}')


def test_the_default_bundles_card_is_of_its_own_figures_and_within_its_limits() -> None:
    bundle = read_bundle(DEFAULT_BUNDLE)
    result = read_evaluation((DEFAULT_BUNDLE / "evaluation.json").read_bytes())
    recorded = read_training((DEFAULT_BUNDLE / "training.json").read_bytes())
    card = (DEFAULT_BUNDLE / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == render(bundle, recorded, result)
    assert result.pictures == 10_000
    assert result.top1 >= 58
    assert result.top5 >= 81
    assert result.inference_ms.median <= 6
    assert sum(file.stat().st_size for file in DEFAULT_BUNDLE.iterdir()) <= 13_000_000
