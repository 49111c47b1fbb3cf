"""A camera too small for a whole network runs its first layers; two hops on the way run more, a server the last.

    python examples/multi_hop_chain.py

What crosses is counted on the parties' channels. The result is the uncut network's, to rounding. Needs scikit-learn.
"""

import copy

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cutlayer
from cutlayer.observe import sheet

ROUNDS, BATCH, LR = 5, 64, 5e-3


def network() -> nn.Sequential:
    """Scores `[B, 10]` for images `[B, 1, 8, 8]`, in float64, so that rounding is small."""
    torch.manual_seed(0)
    camera = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
    gateway = nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    region = nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*camera, *gateway, *region, nn.Linear(64, 10)).double()


def uncut(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The same network trained in one place, on the same batches."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for start in [*range(0, len(x), BATCH)] * ROUNDS:
        optimizer.zero_grad()
        scores = model(x[start : start + BATCH])
        nn.functional.cross_entropy(scores, y[start : start + BATCH]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def main() -> None:
    """Train, and print what crossed, the accuracy, and how far the weights are from the uncut network's."""
    digits = load_digits()
    x, y = torch.tensor(digits.images)[:, None] / 16, torch.tensor(digits.target)
    test = torch.arange(len(y)) % 5 == 0
    result = cutlayer.simulate(
        network(),
        cut=["1", "4", "8"],  # after the layers 1, 4 and 8: the last of the camera, the gateway and the region
        data={"camera": TensorDataset(x[~test], y[~test])},
        roles={"gateway": "hop", "region": "hop"},
        topology="multi_hop",
        optimizer="adam",
        lr=LR,
        batch_size=BATCH,
        rounds=ROUNDS,
        held_out=0.0,
        shuffle=False,
    )
    crossed = sheet.from_meters(result.meters)
    Console(width=100).print(sheet.table(crossed, width=100))
    print(f"raw data that left the camera: {crossed.verdict}; the server has the loss, so it gets the labels")
    model, other = result.model_for("camera"), uncut(network(), x[~test], y[~test])
    apart = [float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    print(f"largest difference from the uncut network's weights: {max(apart):.1e}")
    print(f"accuracy {float((model(x[test]).argmax(1) == y[test]).float().mean()):.3f}")


if __name__ == "__main__":
    main()
