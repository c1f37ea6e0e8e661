"""Train the default model on Tiny ImageNet: checkpoints every epoch, resumes by itself.

    python -m models.train --data tiny-imagenet-200 --out runs/default

Needs PyTorch (`models/requirements-train.txt`), which no service does. The recipe: progressive
picture sizes (small and cheap first, larger at the end), random resized crops and mirroring a
picture at a time, CutMix on some batches until the last fifth, label smoothing, Muon for the
kernels and Nesterov SGD for the rest with a linear schedule, bfloat16, an average of the weights.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import tiny_imagenet
from models.augmentation import cutmix, random_resized_crops
from models.network import NetworkShape, ResidualNetwork
from models.optimizers import Muon

# Channel means and deviations of the training pictures, in units of 0..1.
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2770, 0.2691, 0.2821)


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training run; stored in the checkpoint and in the model card."""

    epochs: int = 24
    batch: int = 256
    kernel_lr: float = 0.04
    other_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    cutmix_share: float = 0.3
    cutmix_until: float = 0.8
    min_crop_area: float = 0.3
    warmup: float = 0.1
    average_decay: float = 0.997
    # (share of the run at which it begins, side in pixels)
    sides: tuple[tuple[float, int], ...] = ((0.0, 32), (0.3, 40), (0.6, 48), (0.93, 64))
    evaluation_side: int = 80
    seed: int = 0

    def side_at(self, share: float) -> int:
        return [side for begin, side in self.sides if begin <= share][-1]

    def rate_at(self, share: float) -> float:
        """Linear warm-up to 1, then linearly to 0."""
        return min(share / self.warmup, (1 - share) / (1 - self.warmup))


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W), centred and scaled, channels last in memory."""
    mean, std = (torch.tensor(values) * 255 for values in (MEAN, STD))
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def optimizers(network: nn.Module, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimizer with its peak rate."""
    kernels: list[Tensor] = []
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, weight in network.named_parameters():
        inner_kernel = weight.ndim == 4 and not name.startswith("stem")
        (kernels if inner_kernel else matrices if weight.ndim > 1 else vectors).append(weight)
    rest = torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.other_lr,
        momentum=recipe.momentum,
        nesterov=True,
    )
    return [
        (Muon(kernels, recipe.kernel_lr, recipe.momentum), recipe.kernel_lr),
        (rest, recipe.other_lr),
    ]


class Training:
    """One run: what is learned, how far it is, and where it is kept."""

    def __init__(self, recipe: Recipe, shape: NetworkShape, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.network = ResidualNetwork(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = get_ema_multi_avg_fn(recipe.average_decay)
        self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizers = optimizers(self.network, recipe)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.checkpoint = out / "checkpoint.pt"
        self.epoch = 0

    def save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "epoch": self.epoch,
                "recipe": dataclasses.asdict(self.recipe),
                "shape": self.network.shape.as_dict(),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
                "generator": self.generator.get_state(),
            },
            partial,
        )
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        saved: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        if saved["recipe"] != dataclasses.asdict(self.recipe):
            raise SystemExit(f"{self.checkpoint} is of another recipe: choose another --out")
        self.epoch = saved["epoch"]
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        for (optimizer, _), state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.generator.set_state(saved["generator"])

    def run_epoch(self, images: Tensor, labels: Tensor) -> Iterator[float]:
        """One pass over the training pictures; yields each step's loss."""
        recipe, steps = self.recipe, len(images) // self.recipe.batch
        order = torch.randperm(len(images), generator=self.generator)
        self.network.train()
        for step in range(steps):
            share = (self.epoch + step / steps) / recipe.epochs
            for optimizer, peak in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * recipe.rate_at(share)
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
            yield self._step(images[chosen], labels[chosen], share)
        self.epoch += 1

    def _step(self, images: Tensor, labels: Tensor, share: float) -> float:
        recipe = self.recipe
        batch = random_resized_crops(
            normalise(images), recipe.side_at(share), recipe.min_crop_area, self.generator
        )
        other, kept = labels, 1.0
        mix = torch.rand(1, generator=self.generator).item() < recipe.cutmix_share
        if mix and share < recipe.cutmix_until:
            batch, order, kept = cutmix(batch, self.generator)
            other = labels[order]
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(batch)[0]
        logits = logits.float()
        loss = kept * F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if kept < 1.0:
            other_loss = F.cross_entropy(logits, other, label_smoothing=recipe.label_smoothing)
            loss = loss + (1 - kept) * other_loss
        for optimizer, _ in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer, _ in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.network)
        return loss.item()


@torch.no_grad()
def accuracy(network: nn.Module, split: tiny_imagenet.Split, side: int) -> tuple[float, float]:
    """Top-1 and top-5 in percent. The bundle's own figures come from `models.evaluate`."""
    network.eval()
    first = fifth = 0
    for begin in range(0, len(split.labels), 500):
        images = normalise(torch.from_numpy(split.images[begin : begin + 500]))
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))[0]
        hits = logits.topk(5).indices == torch.from_numpy(split.labels[begin : begin + 500, None])
        first += int(hits[:, 0].sum())
        fifth += int(hits.sum())
    return 100 * first / len(split.labels), 100 * fifth / len(split.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the unpacked tiny-imagenet-200")
    parser.add_argument("--out", type=Path, default=Path("runs/default"), help="checkpoint folder")
    parser.add_argument("--cache", type=Path, help="keep the decoded pictures here (1.3 GB)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--evaluate-every", type=int, default=4, metavar="EPOCHS")
    args = parser.parse_args()

    train = tiny_imagenet.load(args.data, "train", args.cache)
    held_out = tiny_imagenet.load(args.data, "val", args.cache)
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    shape = NetworkShape(classes=len(tiny_imagenet.class_ids(args.data)))
    training = Training(Recipe(epochs=args.epochs), shape, args.out)
    training.resume()
    recipe = training.recipe

    columns = ("{task.description}", BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        while training.epoch < recipe.epochs:
            name, began = f"epoch {training.epoch + 1}/{recipe.epochs}", time.monotonic()
            bar = progress.add_task(name, total=len(images) // recipe.batch, loss=0.0)
            total = 0.0
            for step, loss in enumerate(training.run_epoch(images, labels), start=1):
                total += loss
                progress.update(bar, advance=1, loss=total / step)
            training.save()
            line = f"{name}: loss {total / step:.3f}, {time.monotonic() - began:.0f} s"
            if training.epoch % args.evaluate_every == 0 or training.epoch == recipe.epochs:
                top1, top5 = accuracy(training.average, held_out, recipe.evaluation_side)
                line += f", top-1 {top1:.2f} %, top-5 {top5:.2f} %"
            progress.console.print(line)


if __name__ == "__main__":
    main()
