"""Training resumes, and its checkpoint becomes a bundle that agrees with PyTorch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.bundles.bundle import read_bundle
from models import tiny_imagenet
from models.calibration import temperature
from models.export_default import averaged_network, checked_difference, export, folded
from models.model_card import read_training
from models.network import NetworkShape
from models.onnx_export import onnx_of
from models.train import Recipe, Training, accuracy, normalise
from tests.support.pictures import picture
from tests.support.tiny_imagenet import write_tiny_imagenet
from worker.inference.classifier import Classifier
from worker.inference.preprocessing import Preprocessor

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "grey": (128, 128, 128),
}
RECIPE = Recipe(epochs=2, batch=8, sides=((0.0, 16), (0.5, 24)), average_decay=0.5)
SHAPE = NetworkShape(classes=4, stem=8, widths=(8, 16), depths=(1, 1))
SIDE = 32


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    val = [(colour, label) for label, colour in COLOURS.items() for _ in range(3)]
    root = tmp_path_factory.mktemp("data") / "tiny"
    return write_tiny_imagenet(root, COLOURS, train=12, val=val)


def train(data: Path, out: Path, epochs: int) -> None:
    """Go on with the run in `out` until `epochs` are done, in a new `Training` as a new process."""
    split = tiny_imagenet.load(data, "train")
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    training = Training(RECIPE, SHAPE, out)
    training.resume()
    while training.epoch < epochs:
        losses = list(training.run_epoch(images, labels))
        assert len(losses) == len(images) // RECIPE.batch
        assert np.isfinite(losses).all()
        training.save()


@pytest.fixture(scope="session")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(data, out, RECIPE.epochs)
    return out / "checkpoint.pt"


@pytest.fixture(scope="session")
def bundle_folder(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "default"
    export(checkpoint, data, out, SIDE)
    return out


def test_an_interrupted_run_ends_with_the_same_weights(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    train(data, tmp_path, 1)
    halfway = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    train(data, tmp_path, 2)
    resumed = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    straight = torch.load(checkpoint, weights_only=True)
    assert (halfway["epoch"], resumed["epoch"], straight["epoch"]) == (1, 2, 2)
    for state in ("network", "average"):
        for name, weight in straight[state].items():
            assert torch.equal(weight, resumed[state][name]), name
    assert not torch.equal(halfway["network"]["head.weight"], resumed["network"]["head.weight"])


def test_a_run_of_another_recipe_is_not_resumed(checkpoint: Path) -> None:
    other = Training(Recipe(epochs=3), SHAPE, checkpoint.parent)
    with pytest.raises(SystemExit, match="another recipe"):
        other.resume()


def test_the_bundle_agrees_with_the_averaged_weights_on_pictures(
    data: Path, checkpoint: Path, bundle_folder: Path
) -> None:
    network = averaged_network(torch.load(checkpoint, weights_only=True))
    bundle = read_bundle(bundle_folder)
    degrees = read_training((bundle_folder / "training.json").read_bytes()).temperature
    classifier = Classifier(bundle, max_pixels=10**6, labels_per_image=4)
    preprocessor = Preprocessor(bundle.manifest, max_pixels=10**6)
    for label, colour in COLOURS.items():
        photo = picture(7, colour, (64, 64))
        with torch.no_grad():
            logits = network(torch.from_numpy(preprocessor.tensor(photo)))[0][0]
        expected = dict(zip(bundle.labels, (logits / degrees).softmax(0).tolist(), strict=True))
        got = {each.label: each.confidence for each in classifier.classify(photo).annotations}
        assert got == pytest.approx(expected, abs=2e-3), label


def test_confidences_are_fitted_to_the_validation_pictures(
    data: Path, checkpoint: Path, bundle_folder: Path
) -> None:
    network = averaged_network(torch.load(checkpoint, weights_only=True))
    preprocessor = Preprocessor(read_bundle(bundle_folder).manifest, max_pixels=10**6)
    files, truth = tiny_imagenet._listing(data, "val")
    tensors = np.concatenate([preprocessor.tensor(each.read_bytes()) for each in files[::2]])
    with torch.no_grad():
        logits = network(torch.from_numpy(tensors))[0].numpy()
    recorded = read_training((bundle_folder / "training.json").read_bytes())
    assert recorded.temperature == round(temperature(logits, np.array(truth[::2])), 2) != 1.0
    assert recorded.temperature_pictures == len(files[::2])


def test_preprocessing_is_what_the_network_was_trained_with(bundle_folder: Path) -> None:
    manifest = read_bundle(bundle_folder).manifest
    colour = torch.full((1, SIDE, SIDE, 3), 200, dtype=torch.uint8)
    photo = picture(0, (200, 200, 200), (SIDE, SIDE), "PNG")
    ours = Preprocessor(manifest, max_pixels=10**6).tensor(photo)
    assert ours.mean((0, 2, 3)) == pytest.approx(normalise(colour).mean((0, 2, 3)), abs=0.02)


def test_export_repeats_to_the_byte(
    data: Path, checkpoint: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "moved" / "checkpoint.pt"
    elsewhere.parent.mkdir()
    shutil.copy(checkpoint, elsewhere)
    again = export(elsewhere, data, tmp_path / "again", SIDE)
    assert again.identity == read_bundle(bundle_folder).identity
    for file in bundle_folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_the_bundle_is_one_file_of_weights_and_names_no_path(bundle_folder: Path) -> None:
    names = {file.name for file in bundle_folder.iterdir()}
    assert names == {"model.onnx", "model.json", "labels.txt", "SHA256SUMS", "training.json"}
    content = (bundle_folder / "model.onnx").read_bytes()
    assert b"models/network.py" not in content
    assert str(Path.cwd()).encode() not in content


def test_a_graph_that_differs_is_refused(checkpoint: Path) -> None:
    network = averaged_network(torch.load(checkpoint, weights_only=True))
    pixels = torch.zeros(2, 3, SIDE, SIDE)
    model = onnx_of(folded(network), pixels, ("logits", "embedding"), free_batch=True)
    assert checked_difference(network, model, SIDE, 1e-3) < 1e-3
    with torch.no_grad():
        network.head.bias[0] += 0.2
    with pytest.raises(SystemExit, match=r"differs from PyTorch by 0\.2"):
        checked_difference(network, model, SIDE, 0.05)


def test_accuracy_is_in_percent_of_the_split(data: Path, checkpoint: Path) -> None:
    split = tiny_imagenet.load(data, "val")
    network = averaged_network(torch.load(checkpoint, weights_only=True))
    # It always says class 0, then 1, 2 and two that do not exist: "grey" is never among the five.
    head = torch.nn.Linear(network.head.in_features, 6)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([6.0, 5, 4, 0, 3, 2]))
    network.head = head
    assert accuracy(network, split, SIDE) == pytest.approx((25, 75))
