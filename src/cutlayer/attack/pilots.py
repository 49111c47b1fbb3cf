"""The attackers' own networks, for activations and inputs of any shape.

Maps `[C, H, W]` get convolutions, after those that Pasquini et al. 2021 (arXiv 2012.02670) attack images with; all else
gets layers that are fully connected. None of them draws anything when it runs, nor keeps a mean over batches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]
"""Of one row, without the batch."""


def encoder(row: Shape, cut: Shape, *, width: int, nonnegative: bool) -> nn.Module:
    """Inputs `[B, *row]` to features `[B, *cut]`.

    `nonnegative`: as those of a client whose segment ends in a ReLU. For maps it is linear otherwise, as the authors'
    pilot: an easy target for a client to hit, and easy to invert.
    """
    last: list[nn.Module] = [nn.ReLU()] if nonnegative else []
    if not _are_maps(row, cut):
        return nn.Sequential(*_dense(row, cut, width), *last)
    channels, side = row[-3] if len(row) == 3 else 1, min(row[-2:])
    layers: list[nn.Module] = [nn.Unflatten(1, (1, row[0]))] if len(row) == 2 else []
    growing = width
    for _ in range(_halvings(side, min(cut[-2:]))):
        layers.append(nn.Conv2d(channels, growing, 3, stride=2, padding=1))
        channels, growing = growing, min(2 * growing, 4 * width)
    layers += [nn.AdaptiveAvgPool2d(cut[-2:]), nn.Conv2d(channels, cut[0], 3, padding=1)]
    return nn.Sequential(*layers, *last)


def decoder(cut: Shape, row: Shape, *, width: int) -> nn.Module:
    """Features `[B, *cut]` back to inputs `[B, *row]`.

    Of any size: a tanh at its end, as the authors have, dies at larger rates than theirs where pixels are mostly black.
    """
    if not _are_maps(row, cut):
        return nn.Sequential(*_dense(cut, row, width))
    doublings = _halvings(min(row[-2:]), min(cut[-2:]))
    layers: list[nn.Module] = []
    channels = cut[0]
    for place in range(doublings):
        narrowing = max(width, 4 * width // 2**place)
        layers += [nn.ConvTranspose2d(channels, narrowing, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = narrowing
    layers += [_Resized(row[-2:]), nn.Conv2d(channels, row[0] if len(row) == 3 else 1, 3, padding=1)]
    return nn.Sequential(*layers, *([nn.Flatten(1, 2)] if len(row) == 2 else []))


def critic(shape: Shape, *, width: int, blocks: int = 6) -> nn.Module:
    """Features `[B, *shape]` to one number a row `[B]`: where they come from."""
    if len(shape) != 3:
        return nn.Sequential(*_dense(shape, (1,), width, hidden=2), nn.Flatten(0))
    wide = 4 * width
    sides: Shape = shape[-2:]
    layers: list[nn.Module] = []
    channels = shape[0]
    while min(sides) > 4:
        layers.append(nn.Conv2d(channels, wide, 3, stride=2, padding=1))
        channels, sides = wide, _halved(sides)
    layers.append(nn.Conv2d(channels, wide, 3, padding=1))
    layers += [_Residual(wide) for _ in range(blocks)]
    layers += [nn.Conv2d(wide, wide, 3, stride=2, padding=1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(wide * math.prod(_halved(sides)), 1), nn.Flatten(0))


def started(network: nn.Module) -> nn.Module:
    """With weights that keep the size of what passes (Glorot and Bengio 2010), as the authors of FSHA have them.

    PyTorch's own are smaller: what a deep network is told at first then hardly depends on its input.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


class Labelled(nn.Module):
    """A network that is told the rows' labels too: as one more channel of maps, or as columns beside them.

    `build`: makes it for rows of the shape that they then have.
    """

    def __init__(self, shape: Shape, classes: int, build: Callable[[Shape], nn.Module]) -> None:
        super().__init__()
        self.classes = classes
        self.plane = nn.Embedding(classes, math.prod(shape[-2:])) if len(shape) == 3 else None
        self.network = build((shape[0] + 1, *shape[1:]) if self.plane else (math.prod(shape) + classes,))

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        if self.plane is None:
            told = F.one_hot(labels, self.classes).to(rows.dtype)
            rows = rows.flatten(1)
        else:
            told = self.plane(labels).view(len(rows), 1, *rows.shape[-2:])
        answer: Tensor = self.network(torch.cat((rows, told), 1))
        return answer


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        answer: Tensor = maps + self.second(self.first(maps.relu()).relu())
        return answer


class _Resized(nn.Module):
    def __init__(self, sides: Shape) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[-2:] == self.sides:
            return maps
        return F.interpolate(maps, self.sides, mode="bilinear")


def _are_maps(row: Shape, cut: Shape) -> bool:
    return len(cut) == 3 and len(row) in (2, 3)


def _halvings(larger: int, smaller: int) -> int:
    return max(0, round(math.log2(larger / smaller)))


def _halved(sides: Shape) -> Shape:
    return tuple(-(-side // 2) for side in sides)


def _dense(shape: Shape, to: Shape, width: int, hidden: int = 1) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(shape)
    for _ in range(hidden):
        layers += [nn.Linear(size, 4 * width), nn.LeakyReLU(0.2)]
        size = 4 * width
    return [*layers, nn.Linear(size, math.prod(to)), nn.Unflatten(1, to)]
