"""The residual network behind the default bundle.

A ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385) scaled for small pictures: a stride-2
stem, three stages, average-pooled shortcuts (ResNet-D, https://arxiv.org/abs/1812.01187) and
squeeze-and-excitation in the later stages (https://arxiv.org/abs/1709.01507).
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkShape:
    """Everything that decides the network's structure; stored in every checkpoint."""

    classes: int = 200
    stem: int = 48
    widths: tuple[int, ...] = (48, 96, 256)
    depths: tuple[int, ...] = (2, 2, 3)
    excite_from: int = 1  # the first stage whose blocks have squeeze-and-excitation

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None].to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `stride` halves the picture when 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, excite: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.excite = SqueezeExcite(outputs) if excite else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        nn.init.zeros_(self.norm2.weight)  # each block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.excite(self.norm2(self.conv2(y)))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResidualNetwork(nn.Module):
    """Pictures (N, 3, H, W), normalised, to `(logits (N, classes), embedding (N, widths[-1]))`."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Sequential(
            nn.Conv2d(3, shape.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(shape.stem), nn.ReLU(True)
        )
        blocks: list[nn.Module] = []
        inputs = shape.stem
        for stage, (width, depth) in enumerate(zip(shape.widths, shape.depths, strict=True)):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(ResidualBlock(inputs, width, stride, stage >= shape.excite_from))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, shape.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(embedding), embedding
