"""Random views of a batch, made on the fly in a few tensor operations."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_resized_crops(
    images: Tensor, side: int, min_area: float, generator: torch.Generator
) -> Tensor:
    """One random crop of each picture, mirrored half the time, resampled to `side`.

    `images` is (N, 3, H, W) float; `min_area` is the smallest share of the picture a crop keeps.
    Aspect ratios lie between 3:4 and 4:3 (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842).
    """
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    area = uniform(min_area, 1.0)
    ratio = torch.exp(uniform(-0.2877, 0.2877))
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = width * mirror
    theta[:, 1, 1] = height
    theta[:, 0, 2] = uniform(-1, 1) * (1 - width)
    theta[:, 1, 2] = uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def cutmix(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Paste one random box from a shuffled copy of the batch (https://arxiv.org/abs/1905.04899).

    Returns the mixed pictures, the order of the copy, and the share of the original that is left.
    """
    side = images.shape[-1]
    order = torch.randperm(len(images), generator=generator)
    cut = int(side * (torch.rand(1, generator=generator).item() ** 0.5))
    top, left = (int(torch.randint(0, side - cut + 1, (1,), generator=generator)) for _ in "yx")
    mixed = images.clone()
    box = (..., slice(top, top + cut), slice(left, left + cut))
    mixed[box] = images[order][box]
    return mixed, order, 1.0 - (cut / side) ** 2
