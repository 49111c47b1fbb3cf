"""Operations of a client that runs VGG-16's first layer alone, against one that runs it whole.

    python benchmarks/flops.py [--clients 100 500] [--json]

CIFAR-10: 50,000 rows of 3×32×32 shared by K clients, one epoch. Under large-batch SGD and federated learning a client
runs the whole model on its rows; under split learning the first convolution and its ReLU. Counted by torch's
`FlopCounterMode` (convolutions and matrix products, two operations a multiply-add) as every client's rows go through,
on tensors without memory. Compared with Vepakomma et al. 2018 (arXiv 1812.00564), the table on CIFAR-10 over VGG. Fails
if the counts do not fall as 1/K exactly, or if the ratio is not 177 forward and 265 with backward.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.model.cut import cut
from cutlayer.studies.flops import operations

ROWS = 50_000
CLIENTS = (100, 500)
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""VGG-16, configuration D of Simonyan, Zisserman 2014 (arXiv 1409.1556): channels, and how many convolutions."""
WIDTH, WIDER = 512, 4096
"""Of the two hidden linear layers: usual for CIFAR-10, which leaves 512 features; and as published for ImageNet."""
FIRST = "1"
"""The ReLU after the first convolution."""

PAPER = {100: (29.4, 0.1548), 500: (5.89, 0.03)}
"""Teraflops of a client as published: uncut (large-batch SGD, federated learning), and split."""
EXPECTED = {"forward": 177, "with backward": 265}


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Operations of one client in an epoch."""

    clients: int
    counted: str
    uncut: int
    split: int

    @property
    def ratio(self) -> float:
        return self.uncut / self.split


def vgg16(width: int = WIDTH) -> nn.Sequential:
    """For 32×32 images of ten classes, without batch normalisation, as published."""
    layers: list[nn.Module] = []
    channels = 3
    for wide, convolutions in BLOCKS:
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
            channels = wide
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512, width), nn.ReLU(), nn.Dropout()]
    layers += [nn.Linear(width, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, 10)]
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), help="K (default: 100 500)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    if any(count < 1 or ROWS % count for count in args.clients):
        parser.error(f"--clients must divide {ROWS:,} rows")
    result = summary(args.clients)
    print(json.dumps(result) if args.json else table(result))
    if faults := list(broken(result)):
        sys.exit("; ".join(faults))


def counts(clients: Sequence[int], width: int = WIDTH) -> list[Count]:
    """Forward alone, and with backward; for each number of clients."""
    with torch.device("meta"):
        model = vgg16(width)
    bottom = cut(model, FIRST, ("bottom", "top"))["bottom"]
    return [
        Count(
            clients=number,
            counted=counted,
            uncut=operations(model, images(ROWS // number), backward=counted != "forward"),
            split=operations(bottom, images(ROWS // number), backward=counted != "forward"),
        )
        for counted in EXPECTED
        for number in clients
    ]


def images(rows: int) -> list[Tensor]:
    """Nobody asks for the gradient of the images, so the first convolution computes none."""
    return [torch.empty(rows, 3, 32, 32, device="meta")]


def summary(clients: Sequence[int]) -> dict[str, Any]:
    return {
        "rows": ROWS,
        "counts": [asdict(count) | {"ratio": count.ratio} for count in counts(clients)],
        "ratio_wider": {count.counted: count.ratio for count in counts(clients[:1], WIDER)},
        "paper": {
            str(number): {"uncut": 1e12 * uncut, "split": 1e12 * split, "ratio": uncut / split}
            for number, (uncut, split) in PAPER.items()
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def broken(result: dict[str, Any]) -> Iterator[str]:
    """What a run must show and this one does not."""
    for counted, expected in EXPECTED.items():
        mine = [count for count in result["counts"] if count["counted"] == counted]
        for part in ("uncut", "split"):
            if len({count[part] * count["clients"] for count in mine}) > 1:
                yield f"{part}, {counted}: operations of a client do not fall as 1/K"
        if any(round(count["ratio"]) != expected for count in mine):
            yield f"{counted}: {mine[0]['ratio']:.1f} times less, but it should be {expected}"


def table(result: dict[str, Any]) -> str:
    lines = [f"{'K':>5}  {'counted':14}  {'uncut':>12}  {'split':>12}  ratio"]
    lines += [line(c["clients"], c["counted"], c["uncut"], c["split"]) for c in result["counts"]]
    lines += [line(int(number), "as published", p["uncut"], p["split"]) for number, p in result["paper"].items()]
    ratios = ", ".join(f"{ratio:.1f} {counted}" for counted, ratio in result["ratio_wider"].items())
    return "\n".join([*lines, f"with hidden layers of {WIDER} instead of {WIDTH}: {ratios}"])


def line(clients: int, counted: str, uncut: float, split: float) -> str:
    return f"{clients:5}  {counted:14}  {uncut / 1e12:9.4f} TF  {split / 1e12:9.6f} TF  {uncut / split:.1f}"


if __name__ == "__main__":
    main()
