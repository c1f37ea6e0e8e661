"""Export a CLIP-like model and a list of labels to a zero-shot bundle.

    python -m models.export_zero_shot openai/clip-vit-base-patch32 --labels labels.txt

The labels are encoded once and folded into the graph (`models.zero_shot`). The exporter compares
the result and the preprocessing with the original before it writes the bundle. Needs PyTorch and
transformers (`models/requirements-export.txt`).
"""

import argparse
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from core.bundles.bundle import Bundle, read_bundle
from models.bundle_writer import new_folder, write_bundle
from models.export_huggingface import (
    arguments,
    card_of,
    check_outputs,
    check_preprocessing,
    explained,
    graph_of,
    print_summary,
    source_name,
)
from models.export_manifest import (
    NotExportable,
    bundle_name,
    manifest,
    preprocessing,
    render_card,
    stated_licence,
)
from models.onnx_graph import MAX_MODEL_BYTES, opset, run
from models.zero_shot import (
    DEFAULT_TEMPLATE,
    EMBEDDING,
    PROBABILITIES,
    fold,
    prompts_of,
    read_labels,
)

TEXTS_AT_ONCE = 64


class ImageTower(nn.Module):
    """The image tower with tensors in and out."""

    def __init__(self, model: nn.Module, flips: bool) -> None:
        super().__init__()
        self.model, self.flips = model, flips

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.flips:
            pixels = pixels.flip(1)
        return (_vectors(self.model.get_image_features(pixel_values=pixels)),)


def load(source: str, cache: Path | None) -> tuple[Any, Any, Any]:
    """The model in float32, its image processor and its tokenizer. Raises NotExportable."""
    options: dict[str, Any] = {"cache_dir": cache}
    with explained(source, "weights"):
        model = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager", **options
        )
    for needed in ("get_image_features", "get_text_features", "logit_scale"):
        if not hasattr(model, needed):
            raise NotExportable(
                f"{source} is a {model.config.model_type} model, which does not compare images "
                "with texts. Export an image classifier without LABELS"
            )
    with explained(source, "image processor configuration (preprocessor_config.json)"):
        processor = transformers.AutoImageProcessor.from_pretrained(
            source, backend="pil", **options
        )
    with explained(source, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    size = sum(weight.numel() for weight in model.parameters()) * 4
    if size > 2 * MAX_MODEL_BYTES:  # the image tower alone is checked when it is written
        raise NotExportable(f"{source} has {size / 1e9:.1f} GB of weights, which is too large")
    return model.eval(), processor, tokenizer


def tokens_of(tokenizer: Any, config: Any, prompts: list[str]) -> Tensor:
    """The tokens of each prompt, padded to the length that the text tower was trained with."""
    longest = int(config.text_config.max_position_embeddings)
    encoded = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
    )
    tokens: Tensor = encoded["input_ids"]
    return tokens


@torch.no_grad()
def text_vectors(model: Any, tokens: Tensor) -> NDArray[np.float32]:
    """The vector of each text."""
    parts = [
        _vectors(model.get_text_features(input_ids=part)).numpy()
        for part in tokens.split(TEXTS_AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.float32)


@torch.no_grad()
def largest_difference(model: Any, tower: ImageTower, graph: Any, tokens: Tensor) -> float:
    """max |ONNX - original| of the scores of a random image, relative to the largest score."""
    side = graph.graph.input[0].type.tensor_type.shape.dim
    shape = (1, 3, side[2].dim_value, side[3].dim_value)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    original = pixels.flip(1) if tower.flips else pixels
    scores = model(input_ids=tokens, pixel_values=original).logits_per_image
    name = graph.graph.output[0].name
    expected = (scores.sigmoid() if name == PROBABILITIES else scores).numpy()
    (found, _) = run(graph, pixels.numpy(), [name, EMBEDDING])
    return float(np.abs(found - expected).max() / max(1e-6, np.abs(expected).max()))


def export(
    source: str,
    labels_file: Path,
    template: str = DEFAULT_TEMPLATE,
    *,
    out: Path | None = None,
    name: str | None = None,
    cache: Path | None = None,
) -> Bundle:
    """Write the bundle to `out`, completely or not at all. Raises NotExportable or FileExistsError.

    Without `out` the bundle goes to `bundles/` and its name.
    """
    labels = read_labels(labels_file)
    prompts = prompts_of(labels, template)
    stem = source_name(source)
    chosen = bundle_name(name or f"{stem}-{labels_file.stem}")
    out = out or Path("bundles") / chosen
    model, processor, tokenizer = load(source, cache)
    rule = preprocessing(processor.to_dict())
    tower = ImageTower(model, rule.flips_channels).eval()
    graph, batch = graph_of(tower, rule, ["vectors"])
    tokens = tokens_of(tokenizer, model.config, prompts)
    bias = getattr(model, "logit_bias", None)
    folded = fold(
        graph,
        text_vectors(model, tokens),
        scale=float(model.logit_scale.detach().exp()),
        bias=None if bias is None else float(bias.detach()),
    )
    difference = largest_difference(model, tower, folded, tokens)
    check_outputs(difference)
    kind: Literal["logits", "probabilities"] = "logits" if bias is None else "probabilities"
    described = manifest(
        chosen, rule, opset=opset(folded), batch=batch, kind=kind, embedding=EMBEDDING
    )
    with new_folder(out) as folder:
        bundle = write_bundle(folder, folded, described, labels)
        check_preprocessing(bundle, processor, rule)
        card = render_card(
            chosen,
            rule,
            labels,
            source=stem,
            revision=getattr(model.config, "_commit_hash", None),
            licence=stated_licence(card_of(source, cache)),
            difference=difference,
            batch=batch,
        )
        card += "\nZero-shot: the labels are texts that the model compares images with. "
        card += f"Template: `{template}`.\n"
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return read_bundle(out)


def _vectors(found: Any) -> Tensor:
    """The vectors of a tower, which some versions of transformers return inside an object."""
    vectors: Tensor = getattr(found, "pooler_output", found)
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a hub id such as openai/clip-vit-base-patch32, or a folder")
    parser.add_argument("--labels", type=Path, required=True, help="a file with one label a line")
    parser.add_argument(
        "--template", default=DEFAULT_TEMPLATE, help="the text, with {} for a label"
    )
    args = arguments(parser)
    try:
        bundle = export(
            args.source,
            args.labels,
            args.template,
            out=args.out,
            name=args.name,
            cache=args.cache,
        )
    except (NotExportable, FileExistsError) as error:
        raise SystemExit(str(error)) from error
    print_summary(bundle)
    print(f"Use it with EXTRA_MODEL_URIS={bundle.folder}")


if __name__ == "__main__":
    main()
