"""A tiny Vision Transformer with random weights becomes a bundle that agrees with transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertModel,
    MobileViTConfig,
    MobileViTForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)

from core.bundles.bundle import read_bundle
from models import export_huggingface
from models.export_huggingface import drawn_picture, export
from models.export_manifest import NotExportable
from tests.support.pictures import encode
from worker.inference.classifier import Classifier

LABELS = {0: "tabby, tabby cat", 1: "school bus", 2: "plunger", 3: "volcano", 4: "pizza"}
NAMED: dict[str, Any] = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}


def saved(folder: Path, model: Any, processor: dict[str, Any] | None = PROCESSOR) -> Path:
    """The model in a folder as the hub would hold it, its weights stirred well."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny vit"
    saved(folder, ViTForImageClassification(ViTConfig(**VIT, **NAMED)))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A tiny ViT\n")
    return folder


@pytest.fixture(scope="session")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "vit"
    export(str(source), out)
    return out


def classifier_of(source: Path) -> Any:
    """What transformers itself offers for classifying a picture."""
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    return pipeline("image-classification", model=str(source), image_processor=processor)


def classified(folder: Path, photo: bytes) -> dict[str, float]:
    classifier = Classifier(read_bundle(folder), max_pixels=10**7, labels_per_image=5)
    return {each.label: each.confidence for each in classifier.classify(photo).annotations}


def test_the_worker_agrees_with_transformers_own_pipeline(source: Path, exported: Path) -> None:
    photo = drawn_picture((120, 80))
    classify = classifier_of(source)
    expected = {each["label"]: each["score"] for each in classify(photo, top_k=5)}
    got = classified(exported, encode(photo, "PNG"))
    assert list(got) == list(expected)
    assert got == pytest.approx(expected, abs=2e-3)
    assert max(got.values()) - min(got.values()) > 0.1  # an undecided network would agree with all


def test_manifest_labels_and_card(exported: Path) -> None:
    bundle = read_bundle(exported)
    assert bundle.labels == tuple(LABELS.values())
    assert bundle.manifest.name == "tiny-vit"
    assert bundle.manifest.input.batch is None
    assert bundle.manifest.resize.method == "stretch"
    assert bundle.manifest.resize.resample == "bicubic"
    assert bundle.manifest.mean == (0.4, 0.5, 0.6)
    assert bundle.manifest.outputs.embedding == "embedding"
    card = (exported / "MODEL_CARD.md").read_text()
    assert "cc-by-4.0" in card
    assert "`tiny vit`" in card
    names = {file.name for file in exported.iterdir()}
    assert names == {"model.onnx", "model.json", "labels.txt", "SHA256SUMS", "MODEL_CARD.md"}


def test_the_embedding_is_the_classifiers_input(source: Path, exported: Path) -> None:
    model = ViTForImageClassification.from_pretrained(source).eval()
    session = ort.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    logits, embedding = session.run(["logits", "embedding"], {"pixels": pixels})
    assert embedding.shape == (4, 32)
    weight, bias = (each.detach().numpy() for each in model.classifier.parameters())
    assert logits == pytest.approx(embedding @ weight.T + bias, abs=1e-4)


def test_export_repeats_to_the_same_identity(source: Path, exported: Path, tmp_path: Path) -> None:
    assert export(str(source), tmp_path / "again").identity == read_bundle(exported).identity


def test_another_name_and_another_identity(source: Path, exported: Path, tmp_path: Path) -> None:
    bundle = export(str(source), tmp_path / "named", name="shop/labels v2")
    assert bundle.manifest.name == "shop-labels-v2"
    assert bundle.identity != read_bundle(exported).identity


def test_channel_order_bgr_is_folded_into_the_network(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "image_size": 64,
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
        "num_attention_heads": 2,
    }
    model = MobileViTForImageClassification(MobileViTConfig(**shape, **NAMED)).eval()
    processor = {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 72},
        "crop_size": {"height": 64, "width": 64},
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "resample": 2,
    }
    source = saved(tmp_path / "source", model, processor)
    photo = drawn_picture((150, 90))
    classify = classifier_of(source)
    expected = {each["label"]: each["score"] for each in classify(photo, top_k=5)}
    export(str(source), tmp_path / "bundle")
    assert classified(tmp_path / "bundle", encode(photo, "PNG")) == pytest.approx(
        expected, abs=0.02
    )


def test_multi_label_classifier_gives_probabilities(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "image_size": 32,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        "problem_type": "multi_label_classification",
    }
    source = saved(tmp_path / "source", SwinForImageClassification(SwinConfig(**shape, **NAMED)))
    bundle = export(str(source), tmp_path / "bundle")
    assert (bundle.manifest.outputs.scores, bundle.manifest.outputs.kind) == ("probabilities",) * 2
    photo = drawn_picture((120, 80))
    # Named here because the pipeline takes a softmax unless the saved configuration says otherwise.
    classify = classifier_of(source)
    answers = classify(photo, top_k=5, function_to_apply="sigmoid")
    expected = {each["label"]: each["score"] for each in answers}
    assert classified(tmp_path / "bundle", encode(photo, "PNG")) == pytest.approx(
        expected, abs=5e-3
    )


def without_head(folder: Path) -> Path:
    return saved(folder, ViTModel(ViTConfig(**VIT)))


def of_text(folder: Path) -> Path:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    return saved(folder, BertModel(BertConfig(**shape)))


def without_processor(folder: Path) -> Path:
    return saved(folder, ViTForImageClassification(ViTConfig(**VIT, **NAMED)), None)


def without_fixed_size(folder: Path) -> Path:
    processor = PROCESSOR | {"size": {"shortest_edge": 32}}
    return saved(folder, ViTForImageClassification(ViTConfig(**VIT, **NAMED)), processor)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (without_head, "not trained as an image classifier: it has no classifier"),
        (of_text, "is a bert model, not an image classifier"),
        (without_processor, "no usable image processor configuration"),
        (without_fixed_size, "no fixed size"),
        (empty, r"no usable config\.json"),
    ],
)
def test_failed_export_gives_the_reason_and_leaves_no_files(
    make: Callable[[Path], Path], why: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    with pytest.raises(NotExportable, match=why):
        export(str(source), tmp_path / "bundle")
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_an_unreachable_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotExportable, match="hub cannot be reached and owner/absent"):
        export("owner/absent", tmp_path / "bundle", cache=tmp_path / "cache")


def test_a_model_beyond_two_gigabytes_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The limit is lowered rather than a model of that size built.
    monkeypatch.setattr(export_huggingface, "MAX_MODEL_BYTES", 10_000)
    with pytest.raises(NotExportable, match="GB of weights"):
        export(str(source), tmp_path / "bundle")


def test_preprocessing_without_a_manifest_form_is_refused(tmp_path: Path) -> None:
    # LayoutLMv2's processor turns RGB to BGR and has no setting that tells.
    processor = PROCESSOR | {"image_processor_type": "LayoutLMv2ImageProcessor", "apply_ocr": False}
    model = ViTForImageClassification(ViTConfig(**VIT, **NAMED))
    source = saved(tmp_path / "source", model, processor)
    with pytest.raises(NotExportable, match="pixels differ by"):
        export(str(source), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
