"""What each schedule learns on MNIST with ten clients, whose rows are alike or very different.

    python benchmarks/learning.py --mnist FILE.npz [--how iid,dirichlet] [--alpha 0.1] [--schedules ...] [--json]

FILE has `x_train y_train x_test y_test`, uint8 images. Every schedule has the same network, cut after its second
convolution, the same optimizer, and passes over all rows until `ROUNDS`. The score is the accuracy on the test images
of the whole model as each client meets it, the mean over clients, and the worst client.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.data.deal import deal

CLIENTS = 10
CUT = "3"
ROUNDS: Mapping[str, int] = {
    "alternating": 6, "relay": 2, "parallel": 6, "splitfed_v1": 8, "splitfed_v2": 4, "splitfed_v3": 6,
}  # fmt: skip
LR: Mapping[str, float] = {
    "parallel": 8e-3, "splitfed_v1": 5e-3, "splitfed_v2": 5e-3, "splitfed_v3": 5e-3,
}  # fmt: skip
"""Where it is not 2e-3: a step of `parallel` is made of ten clients' batches, an average takes fewer steps further."""
BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Accuracy on the test images: of the mean client, and of the worst."""

    schedule: str
    how: str
    rounds: int
    mean: float
    worst: float
    seconds: float


def network() -> nn.Sequential:
    """Scores `[B, 10]` for images `[B, 1, 28, 28]`; 55,000 parameters, 1,250 of them at the client."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def mnist(path: Path) -> tuple[TensorDataset, TensorDataset]:
    """Training and test images `[N, 1, 28, 28]` from 0 to 1, and their labels."""
    with np.load(path, allow_pickle=False) as arrays:
        parts = [(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
    train, test = (
        TensorDataset(torch.from_numpy(x).float().div(255)[:, None], torch.from_numpy(y).long()) for x, y in parts
    )
    return train, test


def dealt(rows: TensorDataset, how: str, alpha: float) -> dict[str, TensorDataset]:
    """Each client's rows."""
    x, y = rows.tensors
    shares = deal(how, y.numpy(), CLIENTS, alpha=alpha, seed=0)
    places = [torch.from_numpy(shares.rows_of(number)) for number in range(CLIENTS)]
    return {f"client-{number}": TensorDataset(x[at], y[at]) for number, at in enumerate(places)}


def train(schedule: str, data: Mapping[str, TensorDataset], **terms: Any) -> Result:
    """Train by a schedule, with Adam."""
    settings: dict[str, Any] = {"rounds": ROUNDS[schedule], "lr": LR.get(schedule, 2e-3)}
    return simulate(
        network(),
        cut=CUT,
        data=data,
        schedule=schedule,
        turn="batch" if schedule == "alternating" else "epoch",
        optimizer="adam",
        batch_size=BATCH,
        held_out=0.0,
        **settings | terms,
    )


def score(schedule: str, how: str, data: Mapping[str, TensorDataset], test: TensorDataset) -> Score:
    start = time.perf_counter()
    result = train(schedule, data)
    seconds = time.perf_counter() - start
    accuracies = [accuracy(result.model_for(name), *test.tensors) for name in data]
    return Score(
        schedule=schedule,
        how=how,
        rounds=ROUNDS[schedule],
        mean=sum(accuracies) / len(accuracies),
        worst=min(accuracies),
        seconds=seconds,
    )


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, type=Path)
    parser.add_argument("--how", default="iid,dirichlet")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--schedules", default=",".join(ROUNDS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.mnist.is_file():
        sys.exit(f"{args.mnist} is not there: give an .npz with x_train, y_train, x_test and y_test")
    rows, test = mnist(args.mnist)
    scores = []
    for how in args.how.split(","):
        data = dealt(rows, how, args.alpha)
        for schedule in args.schedules.split(","):
            scores.append(score(schedule, how, data, test))
            if not args.json:
                print(line(scores[-1]), flush=True)
    if args.json:
        print(json.dumps([asdict(each) for each in scores]))


def line(score: Score) -> str:
    return (
        f"| {score.how} | `{score.schedule}` | {score.rounds} | {score.mean:.4f} | {score.worst:.4f} | "
        f"{score.seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
