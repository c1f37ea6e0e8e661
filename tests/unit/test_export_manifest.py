"""Hugging Face configurations as manifests: the cases are those of transformers' processors."""

from typing import Any

import numpy as np
import pytest

from core.bundles.bundle import BundleManifest, ResizeRule
from core.domain.records import MODEL
from models.export_manifest import (
    NotExportable,
    bundle_name,
    label_list,
    manifest,
    preprocessing,
    render_card,
    stated_licence,
)

HALF = [0.5, 0.5, 0.5]


def processor(kind: str = "ViTImageProcessor", **changes: Any) -> dict[str, Any]:
    """What `to_dict()` of google/vit-base-patch16-224's processor gives, with changes."""
    return {
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": HALF,
        "image_std": HALF,
        "image_processor_type": kind,
    } | changes


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("google/vit-base-patch16-224", "google-vit-base-patch16-224"),
        ("my model (v2)", "my-model-v2"),
        ("../.hidden", "hidden"),
        ("x" * 80, "x" * 63),
        ("Modèle", "Mod-le"),
    ],
)
def test_names_fit_the_manifest_and_the_record(source: str, name: str) -> None:
    assert bundle_name(source) == name
    assert MODEL.fullmatch(f"{name}@0123456789ab")


def test_a_source_without_a_letter_needs_a_name() -> None:
    with pytest.raises(NotExportable, match="--name"):
        bundle_name("///")


def test_labels_are_in_numeric_order_for_any_order_of_the_keys() -> None:
    names = {str(i): f"label {i}" for i in range(11)}
    shuffled = dict(sorted(names.items()))  # "10" comes before "2"
    assert label_list(shuffled) == [f"label {i}" for i in range(11)]
    assert label_list({1: "b\nc", 0: " a "}) == ["a", "b c"]


@pytest.mark.parametrize(
    ("id2label", "why"),
    [
        ({0: "only"}, "fewer than two"),
        ({0: "a", 2: "b"}, "number its labels"),
        ({0: "a", 1: " "}, "no name for class 1"),
    ],
)
def test_labels_that_make_no_list_are_refused(id2label: dict[int, str], why: str) -> None:
    with pytest.raises(NotExportable, match=why):
        label_list(id2label)


def test_vit_stretches() -> None:
    rule = preprocessing(processor())
    assert (rule.height, rule.width) == (224, 224)
    assert rule.resize == ResizeRule(method="stretch", resample="bilinear")
    assert (rule.rescale, rule.mean, rule.std) == (1 / 255, (0.5,) * 3, (0.5,) * 3)
    assert rule.exact
    assert not rule.flips_channels


@pytest.mark.parametrize(
    ("code", "name"),
    [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic"), (4, "box")],
)
def test_resample_codes_are_pillows(code: int, name: str) -> None:
    assert preprocessing(processor(resample=code)).resize.resample == name


@pytest.mark.parametrize(
    ("settings", "side", "short_side"),
    [
        (
            processor(
                "CLIPImageProcessor",
                size={"shortest_edge": 256},
                do_center_crop=True,
                crop_size={"height": 224, "width": 224},
            ),
            224,
            256,
        ),
        (
            processor("ConvNextImageProcessor", size={"shortest_edge": 224}, crop_pct=0.875),
            224,
            256,
        ),
        (processor("ConvNextImageProcessor", size={"shortest_edge": 288}, crop_pct=None), 288, 329),
        (
            processor(
                "LevitImageProcessor",
                size={"shortest_edge": 224},
                do_center_crop=True,
                crop_size={"height": 224, "width": 224},
            ),
            224,
            256,
        ),
        (
            processor(
                "PoolFormerImageProcessor",
                size={"shortest_edge": 224},
                crop_pct=0.9,
                do_center_crop=True,
                crop_size={"height": 224, "width": 224},
            ),
            224,
            248,
        ),
    ],
)
def test_processors_that_crop(settings: dict[str, Any], side: int, short_side: int) -> None:
    rule = preprocessing(settings)
    assert (rule.height, rule.width) == (side, side)
    assert (rule.resize.method, rule.resize.short_side) == ("crop", short_side)
    assert rule.exact


def test_convnext_stretches_from_384_on() -> None:
    rule = preprocessing(processor("ConvNextImageProcessor", size={"shortest_edge": 384}))
    assert (rule.height, rule.resize.method) == (384, "stretch")


def test_square_stretch_with_a_crop_keeps_proportions_and_is_reported() -> None:
    rule = preprocessing(
        processor(
            "DeiTImageProcessor",
            size={"height": 256, "width": 256},
            do_center_crop=True,
            crop_size={"height": 224, "width": 224},
        )
    )
    assert (rule.height, rule.resize.method, rule.resize.short_side) == (224, "crop", 256)
    assert not rule.exact
    card = render_card(
        "deit",
        rule,
        ["a", "b"],
        source="facebook/deit",
        revision="abc",
        licence="apache-2.0",
        difference=1.5e-6,
        batch=None,
    )
    assert "not square" in card


@pytest.mark.parametrize(
    ("changes", "rescale", "mean", "std"),
    [
        ({"do_rescale": False}, 1.0, 0.5, 0.5),
        ({"do_normalize": False}, 1 / 255, 0.0, 1.0),
        ({"image_mean": 0.25, "image_std": 2}, 1 / 255, 0.25, 2.0),
    ],
)
def test_rescaling_and_normalisation(
    changes: dict[str, Any], rescale: float, mean: float, std: float
) -> None:
    rule = preprocessing(processor(**changes))
    assert (rule.rescale, rule.mean, rule.std) == (rescale, (mean,) * 3, (std,) * 3)


def test_efficientnets_extra_steps_are_folded_in() -> None:
    settings = processor(
        "EfficientNetImageProcessor",
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        include_top=True,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    rule = preprocessing(settings)
    value, mean, std = np.array([10.0, 100, 250]), [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    expected = ((value / 127.5 - 1) - mean) / std / std
    assert (value * rule.rescale - rule.mean) / rule.std == pytest.approx(expected)


def test_mobilevit_takes_bgr_and_never_normalises() -> None:
    rule = preprocessing(
        processor(
            "MobileViTImageProcessor",
            size={"shortest_edge": 288},
            do_center_crop=True,
            crop_size={"height": 256, "width": 256},
            do_flip_channel_order=True,
            do_normalize=None,
            image_mean=None,
            image_std=None,
        )
    )
    assert rule.flips_channels
    assert (rule.mean, rule.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"size": None}, "no size"),
        ({"size": {"shortest_edge": 224}}, "no fixed size"),
        ({"size": {"shortest_edge": 224, "longest_edge": 500}}, "no fixed size"),
        ({"size": {"max_height": 224, "max_width": 224}}, "not understood"),
        ({"do_resize": False}, "does not resize"),
        ({"do_pad": True}, "pads"),
        ({"clusters": [[0, 0, 0]]}, "palette"),
        ({"resample": 5}, "filter 5"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": None}, "three numbers"),
        (
            {
                "size": {"shortest_edge": 200},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            "out of a smaller",
        ),
    ],
)
def test_processor_that_no_manifest_can_describe_is_refused(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(NotExportable, match=why):
        preprocessing(processor(**changes))


def test_the_manifest_names_inputs_and_outputs() -> None:
    made = manifest(
        "vit",
        preprocessing(processor()),
        opset=18,
        batch=1,
        kind="probabilities",
        embedding=None,
    )
    assert BundleManifest.model_validate_json(made.model_dump_json()) == made
    assert (made.input.name, made.input.layout, made.input.batch) == ("pixels", "NCHW", 1)
    assert (made.outputs.scores, made.outputs.kind) == ("probabilities", "probabilities")
    assert made.outputs.embedding is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# ViT", "apache-2.0"),
        ("---\ntags: []\nlicense: 'other' \n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", None),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("no front matter", None),
        ("", None),
    ],
)
def test_the_licence_is_the_front_matters(card: str, licence: str | None) -> None:
    assert stated_licence(card) == licence


def test_the_card_names_source_licence_and_difference() -> None:
    card = render_card(
        "vit",
        preprocessing(processor()),
        [f"thing {i}, also named so" for i in range(9)],
        source="google/vit",
        revision=None,
        licence=None,
        difference=2.5e-6,
        batch=1,
    )
    assert "`google/vit`." in card
    assert "not stated" in card
    assert "2.5e-06" in card
    assert "fixed at 1" in card
    assert "thing 4, also named so; ..." in card
    assert "thing 5" not in card
    assert "not square" not in card
