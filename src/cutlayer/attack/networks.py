"""Networks that attackers train: from activations back to inputs, images or tables."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NARROWEST = 16
"""Channels are halved wherever the size doubles, but not below this."""


class ImageDecoder(nn.Module):
    """Images `[B, C, H, W]` within `pixels` from activations `[B, ...]`: transposed convolutions that double the size.

    He, Zhang and Lee 2019 (ACSAC, section 5) take an inverse of the bottom's layers; this one asks only for its shapes.
    """

    def __init__(self, activation: torch.Size, image: torch.Size, *, width: int, pixels: tuple[float, float]) -> None:
        super().__init__()
        channels, height, _ = image
        self.image, self.pixels = image, pixels
        self.start = _start(activation, image, width)
        small = activation[1] if len(activation) == 3 else _small(height)
        doublings = max(0, (height - 1).bit_length() - (small - 1).bit_length())
        layers: list[nn.Module] = []
        for _ in range(doublings):
            half = max(width // 2, min(width, NARROWEST))
            layers += [nn.ConvTranspose2d(width, half, 4, stride=2, padding=1), nn.BatchNorm2d(half), nn.ReLU()]
            width = half
        self.grow = nn.Sequential(*layers)
        self.end = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z_B: Tensor) -> Tensor:  # noqa: N803
        grown = self.grow(self.start(z_B))
        if grown.shape[2:] != self.image[1:]:
            grown = F.interpolate(grown, self.image[1:], mode="bilinear", align_corners=False)
        low, high = self.pixels
        rebuilt: Tensor = low + (high - low) * torch.sigmoid(self.end(grown))
        return rebuilt


class TableDecoder(nn.Module):
    """Rows `[B, F]` from flat activations `[B, D]`: a line, and what two hidden layers add to it, at first nothing."""

    def __init__(self, line: tuple[Tensor, Tensor], *, width: int) -> None:
        super().__init__()
        weight_DF, bias_F = line  # noqa: N806
        inputs, outputs = weight_DF.shape
        self.line = nn.Linear(inputs, outputs)
        with torch.no_grad():
            self.line.weight.copy_(weight_DF.T)
            self.line.bias.copy_(bias_F)
        last = nn.Linear(width, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.bend = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)

    def forward(self, z_BD: Tensor) -> Tensor:  # noqa: N803
        rows: Tensor = self.line(z_BD) + self.bend(z_BD)
        return rows


def ridge(z_ND: Tensor, x_NF: Tensor, penalty: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Weights `[D, F]` and biases `[F]` of the line with the least squared error plus `penalty` times the mean variance
    of `z` times its squared weights; in float64."""
    z, x = z_ND.double(), x_NF.double()
    z_mean, x_mean = z.mean(0), x.mean(0)
    z, x = z - z_mean, x - x_mean
    gram = z.T @ z / len(z)
    gram.diagonal().add_(penalty * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny))
    weight = torch.linalg.lstsq(gram, z.T @ x / len(z), driver="gelsd").solution
    return weight, x_mean - z_mean @ weight


def _start(activation: torch.Size, image: torch.Size, width: int) -> nn.Module:
    if len(activation) == 3:
        return nn.Sequential(nn.Conv2d(activation[0], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    height, breadth = _small(image[1]), _small(image[2])
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(activation.numel(), width * height * breadth),
        nn.Unflatten(1, (width, height, breadth)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def _small(size: int) -> int:
    """From which size doublings come to `size`, or a little over."""
    while size > 7:
        size = -(-size // 2)
    return size
