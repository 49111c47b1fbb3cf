"""What gradients at the cut tell of the labels: bare, with max-norm, and with Marvell's noise.

    python benchmarks/papers/label_leak.py --data /usr/share/datasets/fashion-mnist [--positive 0] [--epochs 5]
        [--marvell 1,2,4] [--json]

The folder has Fashion-MNIST's four idx files, as Debian's package `dataset-fashion-mnist` brings them. One class is
told from the nine others, in mini-batches of 600, by a longhand loop of two parties: images and the bottom at one,
labels and the top at the other. Leak: the attacks of Li et al. 2021 (arXiv 2102.08504) by norm and by cosine, each the
mean AUC within a mini-batch, over all mini-batches; the larger of both. Published for such a task by the authors'
group: 1.0 bare, .584 with max-norm, .617 with noise of sumKL 0.64. Accuracy and AUC are the model's on test images.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.cosine import label_leak
from cutlayer.attack.scoring import auc
from cutlayer.attack.traffic import Traffic
from cutlayer.defence.defence import Context, Defence
from cutlayer.defence.marvell import Marvell
from cutlayer.defence.max_norm import MaxNorm
from cutlayer.plan.tensors import TensorShape

BATCH = 600
CUT = 64
FILES = {"images": "{}-images-idx3-ubyte.gz", "labels": "{}-labels-idx1-ubyte.gz"}
Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Of one defence: the leak with its interval, and how good the model became."""

    defence: str
    leak: float
    low: float
    high: float
    accuracy: float
    auc: float


def read(folder: Path, part: str, positive: int) -> Rows:
    """Images `[N, 784]` from 0 to 1, and whether each is of the class: float `[N]`."""
    with (
        gzip.open(folder / FILES["images"].format(part)) as images,
        gzip.open(folder / FILES["labels"].format(part)) as labels,
    ):
        x = np.frombuffer(images.read(), np.uint8, offset=16).reshape(-1, 784)
        y = np.frombuffer(labels.read(), np.uint8, offset=8)
    return torch.from_numpy(x.astype(np.float32) / 255), torch.from_numpy((y == positive).astype(np.float32))


def segments(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The bottom, to 64 features, and the top, to one logit."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bottom = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CUT), nn.ReLU())
        return bottom, nn.Sequential(nn.Linear(CUT, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))


def mini_batches(rows: int, epochs: int, seed: int = 0) -> Iterator[Tensor]:
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=order).split(BATCH)  # type: ignore[no-untyped-call]


def train(rows: Rows, defence: Defence | None, epochs: int) -> tuple[nn.Module, Traffic]:
    """The whole model, and all gradients as the bottom's party received them."""
    bottom, top = segments()
    optimizers = [torch.optim.Adam(segment.parameters(), lr=1e-3) for segment in (bottom, top)]
    secret = torch.Generator().manual_seed(1)
    state = {} if defence is None else defence.init(TensorShape("float32", (BATCH, CUT)), secret)
    seen: list[tuple[Tensor, Tensor]] = []
    for places in mini_batches(len(rows[0]), epochs):
        x, y = rows[0][places], rows[1][places]
        sent = bottom(x)
        received = sent.detach().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(top(received), y, reduction="sum")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert received.grad is not None
        gradient = received.grad
        if defence is not None:
            gradient = defence.release(gradient, Context(generator=secret, labels=y), state)
        sent.backward(gradient)
        for segment, optimizer in zip((bottom, top), optimizers, strict=True):
            for parameter in segment.parameters():
                assert parameter.grad is not None
                parameter.grad /= len(x)
            optimizer.step()
        seen.append((gradient, y))
    steps = torch.arange(len(seen)).repeat_interleave(torch.tensor([len(y) for _, y in seen]))
    gradients, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return nn.Sequential(bottom, top), Traffic(steps=steps, gradients=gradients, labels=labels)


@torch.no_grad()
def measured(name: str, model: nn.Module, traffic: Traffic, test: Rows) -> Result:
    leak, logits, truth = label_leak(traffic), model(test[0]), test[1] > 0.5
    return Result(
        defence=name,
        leak=leak.value,
        low=leak.low,
        high=leak.high,
        accuracy=float(((logits > 0) == truth).double().mean()),
        auc=auc("the model", logits, truth).value,
    )


def line(result: Result) -> str:
    return (
        f"| {result.defence} | {result.leak:.3f} ({result.low:.3f} to {result.high:.3f}) | {result.accuracy:.4f} | "
        f"{result.auc:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--positive", type=int, default=0, help="the class to tell from the others")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--marvell", default="1,2,4", help="its strengths s")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = [file.format(part) for part in ("train", "t10k") for file in FILES.values()]
    if missing := [name for name in names if not (args.data / name).is_file()]:
        sys.exit(f"skipped: {args.data} has no {', '.join(missing)}: install the package dataset-fashion-mnist")
    rows, test = (read(args.data, part, args.positive) for part in ("train", "t10k"))
    defences: list[Defence | None] = [None, MaxNorm(), *(Marvell(s=float(s)) for s in args.marvell.split(","))]
    results = []
    if not args.json:
        print("| defence | leak AUC (95%) | accuracy | AUC |\n|---|---|---|---|")
    for defence in defences:
        model, traffic = train(rows, defence, args.epochs)
        results.append(measured("none" if defence is None else defence.name, model, traffic, test))
        if not args.json:
            print(line(results[-1]), flush=True)
    if args.json:
        print(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    main()
