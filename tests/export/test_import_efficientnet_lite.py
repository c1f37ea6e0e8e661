"""The default bundle: the same bytes from the same packages, and close to the published network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.efficientnet_lite import OUTPUTS, float_graph, network_of
from models.import_efficientnet_lite import (
    CALIBRATION_FILE,
    Calibration,
    build,
    bundle_manifest,
    calibrate,
)
from models.onnx_graph import run
from models.photos import Photo
from worker.inference.classifier import Classifier

ROOT = Path(__file__).resolve().parents[2]
VARIANT = "lite1"
PHOTOS = [(ROOT / f"examples/{name}.jpg").read_bytes() for name in ("cat", "coffee")]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.model_validate_json(CALIBRATION_FILE.read_bytes())


def test_default_bundle_is_reproducible(calibration: Calibration, tmp_path: Path) -> None:
    bundle = build(calibration, tmp_path / "bundle")
    for name in ("SHA256SUMS", "wordnet_ids.txt", "MODEL_CARD.md"):
        made = (tmp_path / "bundle" / name).read_bytes()
        assert made == (ROOT / "models/default" / name).read_bytes(), name
    assert Classifier(bundle, max_pixels=10**7, labels_per_image=5).classify(PHOTOS[0]).categories


@torch.no_grad()
def test_float_graph_is_the_published_network() -> None:
    pixels = torch.randn(2, 3, 240, 240, generator=torch.Generator().manual_seed(0))
    network = network_of(VARIANT)
    features = network.extract_features(pixels).mean((2, 3))
    logits, embedding = run(float_graph(VARIANT), pixels.numpy(), OUTPUTS)
    assert np.abs(logits - network(pixels).numpy()).max() < 1e-3
    assert embedding.shape == (2, 1280)
    assert np.abs(embedding - features.numpy()).max() < 1e-3
    cooled = run(float_graph(VARIANT, 0.5), pixels.numpy(), OUTPUTS)[0]
    assert np.abs(cooled - 2 * logits).max() < 1e-3


def test_calibration_fits_ranges_temperature_and_threshold(
    calibration: Calibration, tmp_path: Path
) -> None:
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(PHOTOS[number % 2])
    labels = [{"tabby cat", "tiger cat", "Egyptian cat"}, {"espresso", "cup", "coffee mug"}]
    photos = [Photo(file, frozenset(labels[n % 2])) for n, file in enumerate(files)]
    found = calibrate(VARIANT, files[:4], [photos])
    assert found.ranges.keys() == calibration.ranges.keys()
    assert found.agreement[0] >= 0.97
    assert found.fit_photos == (10,)
    assert 0 < found.threshold <= 1.01


def test_manifest_has_the_published_preprocessing() -> None:
    manifest = bundle_manifest("lite0")
    assert (manifest.input.height, manifest.resize.short_side) == (224, 256)
    assert (manifest.rescale, manifest.mean, manifest.std) == (1.0, (127.0,) * 3, (128.0,) * 3)
    assert manifest.resize.resample == "bicubic"
