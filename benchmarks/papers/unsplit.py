"""UnSplit's labels on MNIST: the published figures beside ours, and what a server sees at the cut.

    python benchmarks/papers/unsplit.py [--data FILE.npz] [--quick] [--json]

Erdoğan, Küpçü and Çiçek 2022 (arXiv 2108.09033) hide the last layers with the labels' owner. Their experiments compare
gradients of the hidden part's first weights, one row at a time, for a clone that learns from what it infers. Those
weights' gradients cross no cut. What does is the gradient of the activations: the lower rows of the table are of that.
FILE has `x_train y_train`, uint8 images; it is looked for in ../shared/data/mnist.npz, then in $CUTLAYER_DATA.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.traffic import Traffic
from cutlayer.attack.unsplit import UnsplitLabels

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {1: "100%", 2: "9.1%"}
LR = 0.01
CUT_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Accuracy over attackers whose clones began differently: the mean, the least and the greatest."""

    sees: str
    clone: str
    layers: int
    published: str
    ours: float
    least: float
    greatest: float
    chance: float
    rows: int
    clones: int


def found(given: Path | None) -> Path | None:
    """The data file, or None."""
    named = [given, ROOT.parent / "shared" / "data" / "mnist.npz", os.environ.get("CUTLAYER_DATA")]
    for path in (Path(name) for name in named if name):
        for candidate in (path, path / "mnist.npz"):
            if candidate.is_file():
                return candidate
    return None


def mnist(path: Path) -> tuple[Tensor, Tensor]:
    """Images `[N, 1, 28, 28]` from 0 to 1, and labels `[N]`."""
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["x_train"]).float().div(255)[:, None], torch.from_numpy(arrays["y_train"]).long()


def body() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(),
    )  # fmt: skip


def head(layers: int) -> nn.Module:
    return nn.Linear(64, 10) if layers == 1 else nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def record(data: tuple[Tensor, Tensor], layers: int, rows: int, *, batch: int, of_weights: bool) -> Traffic:
    """The first rows of a training, by SGD with the mean loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(layers)
        below, top = body(), head(layers)
    optimizer = torch.optim.SGD([*below.parameters(), *top.parameters()], LR)
    first = next(top.parameters())
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(0))[:rows]
    activations, gradients = [], []
    for at in torch.split(order, batch):
        h = below(data[0][at])
        h.retain_grad()
        optimizer.zero_grad()
        F.cross_entropy(top(h), data[1][at], reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert h.grad is not None
        assert first.grad is not None
        activations.append(h.detach().clone())
        gradients.append(first.grad[None].clone() if of_weights else h.grad.clone())
        for parameter in (*below.parameters(), *top.parameters()):
            assert parameter.grad is not None
            parameter.grad /= len(at)
        optimizer.step()
    return Traffic(
        steps=torch.arange(rows) // batch, activations=torch.cat(activations), gradients=torch.cat(gradients),
        rows=order, labels=data[1][order],
    )  # fmt: skip


def figure(traffic: Traffic, layers: int, attack: UnsplitLabels, clones: int) -> Figure:
    make: Callable[[], nn.Module] = lambda: head(layers)  # noqa: E731
    scores = [attack.run(traffic, Knowledge(top=make, classes=10), seed) for seed in range(100, 100 + clones)]
    values = [score.value for score in scores]
    return Figure(
        sees="the hidden part's first weights' gradient" if attack.seen == "weights" else "the cut's gradient",
        clone=attack.clone + (f", {attack.named} rows named" if attack.named else ""),
        layers=layers, published=PUBLISHED[layers] if attack.seen == "weights" else "", ours=sum(values) / clones,
        least=min(values), greatest=max(values), chance=scores[0].chance, rows=scores[0].rows, clones=clones,
    )  # fmt: skip


def measured(data: tuple[Tensor, Tensor], *, quick: bool) -> list[Figure]:
    """The paper's setting, then what a server sees."""
    rows, clones = (100, 10) if quick else (1000, 20)
    cut_rows, cut_clones, passes = (512, 2, 20) if quick else (2048, 5, 20)
    paper = UnsplitLabels(clone="taught", seen="weights", named=0, lr=LR, rows=rows)
    same = UnsplitLabels(clone="taught", named=0, lr=LR, rows=cut_rows)
    fitted = UnsplitLabels(clone="fitted", named=50, passes=passes, rows=cut_rows)
    figures = []
    for layers in (1, 2):
        figures.append(figure(record(data, layers, rows, batch=1, of_weights=True), layers, paper, clones))
    for layers in (1, 2):
        traffic = record(data, layers, cut_rows, batch=CUT_BATCH, of_weights=False)
        figures += [figure(traffic, layers, attack, cut_clones) for attack in (same, fitted)]
    return figures


def table(figures: list[Figure]) -> str:
    lines = [
        "| the server sees | its clone is | layers hidden | published | ours (least to greatest) | chance | rows |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.sees} | {one.clone} | {one.layers} | {one.published or '-'} | {one.ours:.1%} "
        f"({one.least:.1%} to {one.greatest:.1%}, {one.clones} clones) | {one.chance:.1%} | {one.rows} |"
        for one in figures
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    path = found(args.data)
    if path is None:
        print(
            "skipped: MNIST is not there; give --data FILE.npz with x_train, y_train, or set CUTLAYER_DATA",
            file=sys.stderr,
        )
        return
    figures = measured(mnist(path), quick=args.quick)
    print(json.dumps([asdict(one) for one in figures]) if args.json else table(figures))


if __name__ == "__main__":
    main()
