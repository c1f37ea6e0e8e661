"""Export a Hugging Face image classifier to a model bundle.

    python -m models.export_huggingface google/vit-base-patch16-224

The source is a hub id or a folder. `HF_HUB_OFFLINE=1` uses only the cache. The exporter compares
the outputs and the preprocessing with the original before it writes the bundle. Needs PyTorch and
transformers (`models/requirements-export.txt`).
"""

import argparse
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import huggingface_hub  # type: ignore[import-not-found]  # comes with transformers
import numpy as np
import onnx
import torch
import transformers
from huggingface_hub.errors import (  # type: ignore[import-not-found]  # as above
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from PIL import Image, ImageDraw
from torch import Tensor, nn

from core.bundles.bundle import Bundle, read_bundle
from models.bundle_writer import folder_bytes, new_folder, write_bundle
from models.export_manifest import (
    NotExportable,
    Preprocessing,
    bundle_name,
    label_list,
    manifest,
    preprocessing,
    render_card,
    stated_licence,
)
from models.onnx_export import onnx_of
from models.onnx_graph import MAX_MODEL_BYTES, opset, run
from worker.inference.preprocessing import Preprocessor

CHECKED_BATCH = 3
# Largest accepted difference of an output, as a share of the output's largest value.
TOLERANCE = 1e-3
# Mean difference of the preprocessed picture in levels of 0..255. Rounding costs a few tenths; a
# wrong size, crop, filter or normalisation costs tens.
LEVEL_TOLERANCE = 1.0


class Exported(nn.Module):
    """A classifier with tensors in and out: the logits, and the input of the last layer."""

    def __init__(
        self, model: nn.Module, head: nn.Linear | None, flips: bool, multilabel: bool
    ) -> None:
        super().__init__()
        self.model, self.flips, self.multilabel = model, flips, multilabel
        self._pooled: list[Tensor] = []
        self.has_embedding = head is not None
        if head is not None:
            head.register_forward_pre_hook(lambda _, inputs: self._pooled.append(inputs[0]))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        self._pooled.clear()
        if self.flips:
            pixels = pixels.flip(1)
        scores = self.model(pixel_values=pixels).logits
        if self.multilabel:
            scores = scores.sigmoid()
        return (scores, self._pooled[0]) if self.has_embedding else (scores,)


def load(source: str, cache: Path | None) -> tuple[Any, Any]:
    """The classifier in float32 and its image processor. Raises NotExportable."""
    options: dict[str, Any] = {"cache_dir": cache}
    with explained(source):
        config = transformers.AutoConfig.from_pretrained(source, **options)
        if type(config) not in transformers.AutoModelForImageClassification._model_mapping:
            raise NotExportable(f"{source} is a {config.model_type} model, not an image classifier")
    with explained(source, "image processor configuration (preprocessor_config.json)"):
        processor = transformers.AutoImageProcessor.from_pretrained(
            source, backend="pil", **options
        )
    with explained(source, "weights"):
        model, loading = transformers.AutoModelForImageClassification.from_pretrained(
            source,
            dtype=torch.float32,
            # The exporter cannot decompose fused attention with some strides (Swin).
            attn_implementation="eager",
            output_loading_info=True,
            **options,
        )
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise NotExportable(
            f"{source} was not trained as an image classifier: it has no {missing[0]}"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise NotExportable(f"{source} does not take RGB pictures")
    size = sum(weight.numel() for weight in model.parameters()) * 4
    if size > MAX_MODEL_BYTES:
        raise NotExportable(
            f"{source} has {size / 1e9:.1f} GB of weights; a bundle holds at most "
            f"{MAX_MODEL_BYTES / 1e9:.0f} GB in one ONNX file"
        )
    return model.eval(), processor


@torch.no_grad()
def classifying_layer(model: nn.Module, classes: int, pixels: Tensor) -> nn.Linear | None:
    """The linear layer that computes the logits from an (N, D) vector, or None."""
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if len(heads) != 1:
        return None
    seen: list[tuple[Tensor, Tensor]] = []
    hook = heads[0].register_forward_hook(lambda _, i, output: seen.append((i[0], output)))
    logits = model(pixel_values=pixels).logits
    hook.remove()
    gives_logits = len(seen) == 1 and seen[0][0].ndim == 2 and torch.equal(seen[0][1], logits)
    return heads[0] if gives_logits else None


def graph_of(
    network: nn.Module, rule: Preprocessing, names: list[str]
) -> tuple[onnx.ModelProto, int | None]:
    """The graph, and its fixed batch size, or None if the batch axis is free."""
    sample = torch.randn(CHECKED_BATCH, 3, rule.height, rule.width)
    try:
        model = onnx_of(network, sample, names, free_batch=True)
        # A graph can declare a free axis and still contain the traced number.
        largest_difference(network, model, rule, names, (1, CHECKED_BATCH + 2))
        return model, None
    except Exception as error:  # noqa: BLE001 - exporter and runtime raise what they like
        print(f"The batch axis cannot be free ({type(error).__name__}); exporting for one picture")
    try:
        return onnx_of(network, sample[:1], names, free_batch=False), 1
    except Exception as error:
        root = str(list(_causes(error))[-1]).partition("\n")[0]
        raise NotExportable(
            f"PyTorch cannot export this model to ONNX: {root or type(error).__name__}"
        ) from error


@torch.no_grad()
def largest_difference(
    network: nn.Module,
    model: onnx.ModelProto,
    rule: Preprocessing,
    names: list[str],
    batches: tuple[int, ...],
) -> float:
    """max |ONNX - original| over all outputs for random inputs, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in batches:
        pixels = torch.randn(batch, 3, rule.height, rule.width, generator=generator)
        expected = network(pixels)
        for want, got in zip(expected, run(model, pixels.numpy(), names), strict=True):
            reference = want.numpy()
            if got.shape != reference.shape:
                raise NotExportable(
                    f"ONNX gives {got.shape} where the model gives {reference.shape}"
                )
            worst = max(worst, float(np.abs(got - reference).max() / np.abs(reference).max()))
    return worst


def level_difference(bundle: Bundle, processor: Any, rule: Preprocessing) -> float:
    """Mean difference, in levels of 0..255, between the worker's input tensor and the processor's.

    The picture is square if the manifest agrees with the processor only for squares.
    """
    picture = drawn_picture((360, 360) if not rule.exact else (500, 360))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    ours = Preprocessor(bundle.manifest, max_pixels=10**7).tensor(buffer.getvalue())
    theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"], np.float32)
    if rule.flips_channels:
        theirs = theirs[:, ::-1]
    if ours.shape != theirs.shape:
        raise NotExportable(f"the processor makes {theirs.shape}, the bundle {ours.shape}")
    levels = np.array(rule.std).reshape(1, 3, 1, 1) / rule.rescale
    return float((np.abs(ours - theirs) * levels).mean())


def drawn_picture(size: tuple[int, int]) -> Image.Image:
    """Colour ramps and an off-centre disc: another crop or channel order gives other pixels."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    ramps = np.stack([255 * x, 255 * y, 120 + 100 * np.sin(9 * (x + y))], axis=-1)
    picture = Image.fromarray(ramps.astype(np.uint8))
    box = (width * 0.55, height * 0.2, width * 0.85, height * 0.6)
    ImageDraw.Draw(picture).ellipse(box, fill=(250, 240, 30))
    return picture


def check_outputs(difference: float) -> None:
    """Check the `largest_difference` of an exported graph. Raises NotExportable."""
    if not difference <= TOLERANCE:
        raise NotExportable(
            f"the ONNX file differs from the original by {difference:.1e} of the largest value; "
            f"{TOLERANCE:.0e} is allowed"
        )


def check_preprocessing(bundle: Bundle, processor: Any, rule: Preprocessing) -> None:
    """Check that the bundle preprocesses images as `processor` does. Raises NotExportable."""
    levels = level_difference(bundle, processor, rule)
    if not levels <= LEVEL_TOLERANCE:
        raise NotExportable(
            f"a manifest cannot say what {type(processor).__name__} does: its pixels differ by "
            f"{levels:.1f} levels on average"
        )


def source_name(source: str) -> str:
    """The name of a folder, or a hub id."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def export(
    source: str, out: Path | None, name: str | None = None, cache: Path | None = None
) -> Bundle:
    """Write the bundle to `out`, completely or not at all. Raises NotExportable or FileExistsError.

    Without `out` the bundle goes to `bundles/` and its name.
    """
    chosen = bundle_name(name or source_name(source))
    out = out or Path("bundles") / chosen
    model, processor = load(source, cache)
    labels = label_list(model.config.id2label)
    rule = preprocessing(processor.to_dict())
    multilabel = model.config.problem_type == "multi_label_classification"
    kind: Literal["logits", "probabilities"] = "probabilities" if multilabel else "logits"
    sample = torch.zeros(1, 3, rule.height, rule.width)
    head = classifying_layer(model, len(labels), sample)
    network = Exported(model, head, rule.flips_channels, multilabel).eval()
    names: list[str] = [kind, "embedding"] if network.has_embedding else [kind]
    graph, batch = graph_of(network, rule, names)
    difference = largest_difference(network, graph, rule, names, (1,) if batch else (1, 3))
    check_outputs(difference)
    described = manifest(
        chosen,
        rule,
        opset=opset(graph),
        batch=batch,
        kind=kind,
        embedding="embedding" if network.has_embedding else None,
    )
    with new_folder(out) as folder:
        bundle = write_bundle(folder, graph, described, labels)
        check_preprocessing(bundle, processor, rule)
        card = render_card(
            chosen,
            rule,
            labels,
            source=source_name(source),
            revision=getattr(model.config, "_commit_hash", None),
            licence=stated_licence(card_of(source, cache)),
            difference=difference,
            batch=batch,
        )
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return read_bundle(out)


def card_of(source: str, cache: Path | None) -> str:
    """The source's README.md, or an empty text."""
    try:
        if Path(source).is_dir():
            return (Path(source) / "README.md").read_text(encoding="utf-8")
        return Path(
            huggingface_hub.hf_hub_download(source, "README.md", cache_dir=cache)
        ).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, HfHubHTTPError):
        return ""


@contextlib.contextmanager
def explained(source: str, what: str = "config.json of an image classifier") -> Iterator[None]:
    """Translate the errors of the libraries into one that says what to do."""
    try:
        yield
    except NotExportable:
        raise
    except Exception as error:
        chain = list(_causes(error))
        if any(isinstance(each, GatedRepoError) for each in chain):
            reason = f"{source} is gated: accept its terms on the hub and log in"
        elif any(isinstance(each, RepositoryNotFoundError) for each in chain):
            reason = f"the hub has no model {source} (or you may not see it)"
        elif not Path(source).is_dir() and any(_unreachable(each) for each in chain):
            reason = (
                f"the hub cannot be reached and {source} is not in the cache; pass a folder, "
                "or a --cache that holds it"
            )
        elif isinstance(error, OSError | ValueError | KeyError):
            reason = f"{source} has no usable {what}: {_first_sentence(error)}"
        else:
            raise
        raise NotExportable(reason) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and its contexts."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _unreachable(error: BaseException) -> bool:
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or "couldn't connect" in str(error).lower()


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the options of every exporter. Silences the libraries."""
    parser.add_argument(
        "--out", type=Path, help="folder of the new bundle; bundles/NAME by default"
    )
    parser.add_argument("--name", help="the bundle's name; derived from the source by default")
    parser.add_argument("--cache", type=Path, help="where downloads are kept")
    transformers.utils.logging.set_verbosity_error()
    return parser.parse_args()


def print_summary(bundle: Bundle) -> None:
    size = folder_bytes(bundle.folder) / 1e6
    print(f"{bundle.identity}: {size:.1f} MB, {len(bundle.labels)} labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a hub id such as google/vit-base-patch16-224, or a folder")
    args = arguments(parser)
    try:
        bundle = export(args.source, args.out, args.name, args.cache)
    except (NotExportable, FileExistsError) as error:
        raise SystemExit(str(error)) from error
    print_summary(bundle)
    print(f"Use it with MODEL_URI={bundle.folder}, or from a bucket of yours:")
    print(f"  gcloud storage cp -r {bundle.folder} gs://BUCKET/models/")
    print(f"  MODEL_URI=gs://BUCKET/models/{bundle.folder.name}")


if __name__ == "__main__":
    main()
