"""NoPeek on MNIST: accuracy and leak at the cut by its weight, and what Laplace noise costs after training.

    python benchmarks/papers/nopeek.py [--data MNIST.npz] [--rows 10000] [--rounds 10] [--weights 0 0.2 0.5] [--json]

A split run of two parties for each weight, through `simulate`: two convolutions, a pool and a linear layer to 500
numbers at the client; two linear layers at the server; mini-batches of 64, SGD. Published figures are those of Titcombe
et al. 2021 (arXiv 2104.05743), who train on a part of MNIST, and whose code squares distances: their "leak" is the root
of linear CKA. Ours is the mean over the test rows in batches of 64; distance correlation stands beside it. Laplace
noise with b = 1 is added to the cut of the trained model as the test rows pass it, as they do.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.defence import noise
from cutlayer.defence.dependence import distance_correlation, root_cka
from cutlayer.plan.terms import DefenceTerms, Method

BATCH, CUT = 64, "6"
PUBLISHED = {0.0: (97.92, 0.843, 97.24), 0.2: (97.74, 0.529, None), 0.5: (97.32, 0.435, 66.88)}
"""By weight: accuracy and leak; accuracy with noise after training, where that is published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Of one weight: accuracies in percent, and what the cut has to do with the rows."""

    weight: float
    accuracy: float
    leak: float
    distance_correlation: float
    noisy_accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="an .npz with x_train y_train x_test y_test")
    parser.add_argument("--rows", type=int, default=10_000, help="to train on (default: 10000)")
    parser.add_argument("--test-rows", type=int, default=10_000, help="to test on (default: 10000)")
    parser.add_argument("--rounds", type=int, default=10, help="passes over them (default: 10)")
    parser.add_argument("--lr", type=float, default=0.1, help="(default: 0.1)")
    parser.add_argument("--weights", type=float, nargs="+", default=list(PUBLISHED), help="(default: 0 .2 .5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    if not args.data.exists():
        sys.exit(f"skipped: {args.data} is not there; name an .npz of MNIST with --data")
    torch.set_num_threads(1)
    train, test = read(args.data, "train", args.rows), read(args.data, "test", args.test_rows)
    found = []
    for weight in args.weights:
        found.append(measured(weight, train, test, rounds=args.rounds, lr=args.lr))
        print(in_words(found[-1]), file=sys.stderr)
    print(json.dumps([asdict(each) for each in found]) if args.json else table(found))


def default_data() -> Path:
    return Path(os.environ.get("CUTLAYER_DATA", "../shared/data/mnist.npz"))


def read(path: Path, part: str, rows: int) -> TensorDataset:
    """The first rows: images `[N, 1, 28, 28]`, mean 0 and deviation 1 over MNIST; labels `[N]`."""
    with np.load(path) as held:
        x, y = held[f"x_{part}"][:rows], held[f"y_{part}"][:rows]
    images = (torch.from_numpy(x.astype(np.float32))[:, None] / 255 - 0.1307) / 0.3081
    return TensorDataset(images, torch.from_numpy(y.astype(np.int64)))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 500), nn.Linear(500, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def measured(weight: float, train: TensorDataset, test: TensorDataset, *, rounds: int, lr: float) -> Result:
    """A run with NoPeek of this weight, and what its cut tells."""
    nopeek = Method(name="nopeek", options={"alpha": weight, "statistic": "root_cka"})
    result = simulate(
        network(),
        cut=CUT,
        data={"client": train},
        held_out={"client": test},
        defence=DefenceTerms(forward=(nopeek,)),
        optimizer="SGD",
        lr=lr,
        batch_size=BATCH,
        rounds=rounds,
    )
    model = result.model_for("client")
    assert isinstance(model, nn.Sequential)
    bottom, top = model[: int(CUT) + 1], model[int(CUT) + 1 :]
    generator = noise.generator_of(b"laplace noise on the test rows..")
    right, leaks, correlations = 0, [], []
    for x, y in zip(*(torch.split(column, BATCH) for column in test.tensors), strict=True):
        with torch.no_grad():
            z = bottom(x)
            right += int((top(z + noise.laplace(z.shape, generator).to(z)).argmax(1) == y).sum())
        if len(x) == BATCH:
            leaks.append(root_cka(x, z).item())
            correlations.append(distance_correlation(x, z).item())
    return Result(
        weight=weight,
        accuracy=100 * result.metrics["client"]["accuracy"],
        leak=mean(leaks),
        distance_correlation=mean(correlations),
        noisy_accuracy=100 * right / len(test),
    )


def mean(numbers: list[float]) -> float:
    return float(np.mean(numbers))


def in_words(result: Result) -> str:
    return f"weight {result.weight:g}: accuracy {result.accuracy:.2f}, leak {result.leak:.3f}"


def table(found: list[Result]) -> str:
    """Markdown, the published figure beside ours."""
    lines = [
        "| weight | accuracy % | published | leak (√CKA) | published | distance correlation "
        "| Laplace b = 1 | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        accuracy, leak, noisy = PUBLISHED.get(each.weight, (None, None, None))
        lines.append(
            f"| {each.weight:g} | {each.accuracy:.2f} | {told(accuracy)} | {each.leak:.3f} | {told(leak)} "
            f"| {each.distance_correlation:.3f} | {each.noisy_accuracy:.2f} | {told(noisy)} |"
        )
    return "\n".join(lines)


def told(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:g}"


if __name__ == "__main__":
    main()
