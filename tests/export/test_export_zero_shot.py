"""Tiny CLIP and SigLIP models with random weights become bundles that agree with transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from core.bundles.bundle import read_bundle
from models.export_manifest import NotExportable
from models.export_zero_shot import export, tokens_of
from models.zero_shot import prompts_of
from tests.export.test_export_huggingface import PROCESSOR
from tests.support.pictures import encode
from worker.inference.classifier import Classifier

LABELS = ["cat", "dog", "car"]
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", *LABELS]
TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


@pytest.fixture(params=["clip", "siglip"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    if request.param == "clip":
        model: Any = CLIPModel(
            CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
        )
    else:
        model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    folder = tmp_path / request.param
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{label}\n" for label in LABELS))
    return file


@torch.no_grad()
def expected(source: Path, photo: Any) -> np.ndarray:
    """The probabilities by transformers itself."""
    model = AutoModel.from_pretrained(source).eval()
    pixels = AutoImageProcessor.from_pretrained(source, backend="pil")(photo, return_tensors="pt")
    tokens = tokens_of(AutoTokenizer.from_pretrained(source), model.config, prompts_of(LABELS))
    scores = model(input_ids=tokens, pixel_values=pixels["pixel_values"]).logits_per_image[0]
    found = scores.sigmoid() if hasattr(model, "logit_bias") else scores.softmax(-1)
    return np.asarray(found)


def test_the_worker_agrees_with_transformers(source: Path, labels: Path, tmp_path: Path) -> None:
    from models.export_huggingface import drawn_picture

    bundle = export(str(source), labels, out=tmp_path / "bundle")
    assert bundle.labels == tuple(LABELS)
    assert bundle.manifest.name == f"{source.name}-words"
    photo = drawn_picture((120, 80))
    classifier = Classifier(read_bundle(bundle.folder), max_pixels=10**7, labels_per_image=3)
    found = {
        each.label: each.confidence
        for each in classifier.classify(encode(photo, "PNG")).annotations
    }
    want = dict(zip(LABELS, expected(source, photo), strict=True))
    assert found == pytest.approx(want, abs=5e-3)
    assert "a photo of a {}" in (bundle.folder / "MODEL_CARD.md").read_text()


def test_image_classifier_is_refused(tmp_path: Path, labels: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VISION)).save_pretrained(tmp_path / "vit")
    with pytest.raises(NotExportable, match="does not compare images with texts"):
        export(str(tmp_path / "vit"), labels)
