"""Derives a bundle's name, labels and manifest from a Hugging Face image classifier.

Plain functions of plain data, without PyTorch or transformers. The settings mean the same as in
transformers' image processors (`image_processing_pil_*.py` in each model's folder).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core.bundles.bundle import BundleManifest, InputSpec, OutputSpec, ResizeRule

NAME_LENGTH = 63
CHANNELS = 3
# ConvNeXT's processor crops below this side, and stretches from it.
CONVNEXT_STRETCH_FROM = 384

# Pillow's codes: https://pillow.readthedocs.io/en/stable/reference/Image.html#resampling-filters
Resample = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
_RESAMPLE: Mapping[int, Resample] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
}


class NotExportable(ValueError):
    """The model or its processor cannot become a bundle, for the reason in the message."""


@dataclass(frozen=True)
class Preprocessing:
    """How a processor makes the input tensor from a picture.

    `flips_channels`: the network expects BGR. `exact` is false if the processor stretches pictures
    that are not square, which the manifest does not.
    """

    height: int
    width: int
    resize: ResizeRule
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips_channels: bool = False
    exact: bool = True


def bundle_name(source: str) -> str:
    """A hub id, or a folder's name, as a bundle's name: `owner/model` becomes `owner-model`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-._")[:NAME_LENGTH].rstrip("-._")
    if not name:
        raise NotExportable(f"no bundle name can be made of {source!r}; pass --name")
    return name


def label_list(id2label: Mapping[Any, str]) -> list[str]:
    """The labels in index order. The keys must be 0, 1, 2, ... as numbers or strings."""
    named = {int(key): " ".join(str(label).split()) for key, label in id2label.items()}
    if len(named) < 2:
        raise NotExportable("the model tells fewer than two classes apart")
    if sorted(named) != list(range(len(named))):
        raise NotExportable("id2label does not number its labels 0, 1, 2, ...")
    blank = [index for index, label in named.items() if not label]
    if blank:
        raise NotExportable(f"id2label has no name for class {blank[0]}")
    return [named[index] for index in range(len(named))]


def preprocessing(processor: Mapping[str, Any]) -> Preprocessing:
    """From an image processor's `to_dict()`. Raises NotExportable if it has no equivalent."""
    kind = str(processor.get("image_processor_type", ""))
    for key, why in (
        ("do_pad", "pads its pictures"),
        ("clusters", "turns pixels into palette indices"),
        ("do_color_quantize", "turns pixels into palette indices"),
        ("do_grayscale", "makes pictures grey"),
    ):
        if processor.get(key):
            raise NotExportable(f"{kind or 'the processor'} {why}, which a bundle cannot say")
    if not processor.get("do_resize", True):
        raise NotExportable(f"{kind or 'the processor'} does not resize, so the input has no size")
    height, width, resize, exact = _geometry(kind, processor)
    rescale = (
        float(processor.get("rescale_factor", 1 / 255)) if _does(processor, "rescale") else 1.0
    )
    mean, std = _normalisation(kind, processor)
    return Preprocessing(
        height,
        width,
        resize,
        rescale,
        mean,
        std,
        flips_channels=bool(processor.get("do_flip_channel_order", False)),
        exact=exact,
    )


def manifest(
    name: str,
    rule: Preprocessing,
    *,
    opset: int,
    batch: int | None,
    kind: Literal["logits", "probabilities"],
    embedding: str | None,
) -> BundleManifest:
    """The manifest of an exported network, whose outputs are named `kind` and `embedding`."""
    return BundleManifest(
        name=name,
        input=InputSpec(
            name="pixels", layout="NCHW", height=rule.height, width=rule.width, batch=batch
        ),
        resize=rule.resize,
        rescale=rule.rescale,
        mean=rule.mean,
        std=rule.std,
        outputs=OutputSpec(scores=kind, kind=kind, embedding=embedding),
        opset=opset,
    )


def stated_licence(card: str) -> str | None:
    """`license` in the YAML front matter of a hub model card, unchanged."""
    front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = front and re.search(r"^license:[ \t]*([^\s#].*?)[ \t]*$", front[1], re.MULTILINE)
    return found[1].strip("'\"") if found else None


def render_card(
    name: str,
    rule: Preprocessing,
    labels: Sequence[str],
    *,
    source: str,
    revision: str | None,
    licence: str | None,
    difference: float,
    batch: int | None,
) -> str:
    """`MODEL_CARD.md` of an exported bundle."""
    shown = "; ".join(labels[:5]) + ("; ..." if len(labels) > 5 else "")
    how = "stretched" if rule.resize.method == "stretch" else "cropped at the centre"
    note = ""
    if not rule.exact:
        note = (
            "\nThe original stretches pictures to a square before it crops. This bundle keeps "
            "their proportions,\nso results differ for pictures that are not square.\n"
        )
    return f"""# {name}

Exported from `{source}`{f" at revision `{revision}`" if revision else ""}.

| | |
|---|---|
| Licence, as the source states it | {licence or "not stated: ask the source before you use it"} |
| Labels | {len(labels)}: {shown} |
| Input | {rule.height} x {rule.width} pixels, {how}, {rule.resize.resample} |
| Batch axis | {"free" if batch is None else f"fixed at {batch}"} |
| Largest difference between this ONNX file and the original, random inputs | {difference:.1e} |
{note}
Data, training, measured accuracy and limits are those of the source; read its own model card.
"""


def _does(processor: Mapping[str, Any], step: str) -> bool:
    return bool(processor.get(f"do_{step}", True))


def _geometry(kind: str, processor: Mapping[str, Any]) -> tuple[int, int, ResizeRule, bool]:
    """Input height and width, the resize rule, and whether it is exact."""
    size = processor.get("size")
    if not isinstance(size, Mapping):
        raise NotExportable("the processor's configuration has no size")
    resample = _resample(processor.get("resample", 2))
    short = size.get("shortest_edge")
    if short and kind.startswith("ConvNext"):
        if short >= CONVNEXT_STRETCH_FROM:
            return short, short, ResizeRule(method="stretch", resample=resample), True
        enlarged = int(short / float(processor.get("crop_pct") or 224 / 256))
        return _crop(short, short, enlarged, resample)
    if short and size.get("longest_edge"):
        raise NotExportable("the processor bounds both sides, so the input has no fixed size")
    if short and kind.startswith("Levit"):
        short = int(256 / 224 * short)
    crops = bool(processor.get("do_center_crop", False))
    crop_height, crop_width = _sides(processor.get("crop_size") or {}) if crops else (None, None)
    height, width = _sides(size)
    if processor.get("crop_pct") and not kind.startswith("ConvNext"):
        # PoolFormer: the picture is larger than the crop by this ratio, and keeps its proportions.
        short, height, width = (
            int((short or min(height or 0, width or 0)) / processor["crop_pct"]),
            None,
            None,
        )
    if short:
        if crop_height is None or crop_width is None:
            raise NotExportable(
                "the processor keeps the picture's proportions without a centre crop, so the input "
                "has no fixed size"
            )
        return _crop(crop_height, crop_width, short, resample)
    if height is None or width is None:
        raise NotExportable(f"the processor's size is not understood: {dict(size)}")
    if crop_height is None or crop_width is None or (crop_height, crop_width) == (height, width):
        return height, width, ResizeRule(method="stretch", resample=resample), True
    crop = _crop(crop_height, crop_width, min(height, width), resample)
    if height != width:
        raise NotExportable("the processor stretches to a rectangle and crops that")
    return (*crop[:3], False)


def _crop(
    height: int, width: int, short: int, resample: Resample
) -> tuple[int, int, ResizeRule, bool]:
    if short < max(height, width):
        raise NotExportable(f"the processor crops {height} x {width} out of a smaller {short}")
    return height, width, ResizeRule(method="crop", short_side=short, resample=resample), True


def _sides(size: Mapping[str, Any]) -> tuple[int | None, int | None]:
    return size.get("height"), size.get("width")


def _resample(code: Any) -> Resample:
    try:
        return _RESAMPLE[int(code)]
    except (KeyError, TypeError, ValueError):
        raise NotExportable(f"the processor's resample filter {code!r} is not supported") from None


def _normalisation(
    kind: str, processor: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, including the further steps of EfficientNet's processor."""
    mean, std = (0.0,) * CHANNELS, (1.0,) * CHANNELS
    # MobileViT's processor never normalises, whatever its configuration says.
    if _does(processor, "normalize") and not kind.startswith("MobileViT"):
        mean, std = _channels(processor, "image_mean"), _channels(processor, "image_std")
    if kind.startswith("EfficientNet"):
        if processor.get("rescale_offset", False):  # v * rescale - 1
            mean = tuple(value + 1 for value in mean)
        if processor.get("include_top", True):  # divided by the deviation once more
            std = tuple(a * b for a, b in zip(std, _channels(processor, "image_std"), strict=True))
    return mean, std


def _channels(processor: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = processor.get(key)
    values: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * CHANNELS
    if len(values) != CHANNELS or not all(isinstance(each, int | float) for each in values):
        raise NotExportable(f"the processor's {key} is {value!r}; three numbers are needed")
    return tuple(float(each) for each in values)
