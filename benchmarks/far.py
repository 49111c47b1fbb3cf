"""What overlap is worth where the round trip is long: two parties with features and one with labels.

    python benchmarks/far.py [--only auc|overlap] [--rounds 10] [--delay-ms 25] [--rate-mbit 100] [--json]

`auc`: how long W2V takes to the AUC that exact training has after `--rounds` rounds, within 0.005, if its steps wait
for each other, if several are under way (`staleness`), and if each party takes steps by itself on what it was sent
(`cached_steps`). Rounds are counted in simulation, whose weights are those of a run over a network, bit for bit; what
a step takes is measured in processes of their own, over an emulated link with a delay each way.
`overlap`: what a step of W3V takes, which sends 16 MiB there and as much back, with one micro-batch and with several,
over a link with the delay and a rate. Its weights are exact either way.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from cutlayer import simulate
from speed import interval_of_steps, split_run
from worker import SERVER
from workloads import LR, WORKLOADS, Setting

TRAIN, CLOSE = 16_128, 0.005
WAYS = {
    "exact": Setting(),
    "staleness = 4": Setting(staleness=4),
    "staleness = 8": Setting(staleness=8),
    "cached_steps = 4": Setting(cached_steps=4),
    "cached_steps = 8": Setting(cached_steps=8),
}
PARTS = (1, 4, 8)
STEPS, LARGE_STEPS, TIMEOUT_S = 60, 8, 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """How a way of training comes to the wanted AUC, on rows that it was not trained on."""

    way: str
    auc: float
    rounds: int
    step_s: float
    seconds: float
    faster: float
    """Than exact training, over the whole way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlapped:
    """A step with so many micro-batches; how much faster than with one, and the interval of that over the steps."""

    parts: int
    step_s: float
    faster: float
    low: float
    high: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["auc", "overlap"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--delay-ms", type=float, default=25.0, help="one way; a round trip takes twice as long")
    parser.add_argument("--rate-mbit", type=float, default=100.0, help="of the line to the label holder, for `overlap`")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    learned = [] if args.only == "overlap" else to_the_same_auc(args.rounds, args.delay_ms)
    overlapped = [] if args.only == "auc" else in_parts(args.delay_ms, args.rate_mbit)
    if args.json:
        print(json.dumps({"auc": [asdict(each) for each in learned], "overlap": [asdict(each) for each in overlapped]}))
    else:
        print("\n".join(table(learned, overlapped)))


# ---------------------------------------------------------------------- to the same AUC


def to_the_same_auc(rounds: int, delay_ms: float) -> list[Learned]:
    wanted = auc_after(rounds, WAYS["exact"]) - CLOSE
    found: list[Learned] = []
    for way, setting in WAYS.items():
        needed, auc = rounds_to(wanted, setting, 2 * rounds)
        step_s = statistics.fmean(steps_of("W2V", STEPS, delay_ms=delay_ms, setting=setting))
        seconds = needed * (TRAIN // WORKLOADS["W2V"].batch) * step_s
        exact_s = found[0].seconds if found else seconds
        found.append(Learned(way=way, auc=auc, rounds=needed, step_s=step_s, seconds=seconds, faster=exact_s / seconds))
    return found


def rounds_to(wanted: float, setting: Setting, most: int) -> tuple[int, float]:
    """The first number of rounds after which the AUC is as wanted, and that AUC."""
    for rounds in range(1, most + 1):
        if (auc := auc_after(rounds, setting)) >= wanted:
            return rounds, auc
    sys.exit(f"{setting} has not come to an AUC of {wanted:.4f} in {most} rounds")


def auc_after(rounds: int, setting: Setting) -> float:
    """On the rows that were not trained on."""
    workload = WORKLOADS["W2V"]
    x, y = workload.rows()
    shares = dict(zip(workload.clients, x.chunk(len(workload.clients), 1), strict=True))
    result = simulate(
        workload.model(),
        data={name: TensorDataset(each[:TRAIN]) for name, each in (shares | {SERVER: y}).items()},
        roles={SERVER: "server"},
        topology="vertical",
        loss=workload.loss,
        optimizer={"name": "SGD", "lr": LR},
        batch_size=workload.batch,
        rounds=rounds,
        staleness=setting.staleness,
        cached_steps=setting.cached_steps,
        held_out=0.0,
    )
    answers = result.predict({name: TensorDataset(each[TRAIN:]) for name, each in shares.items()})
    return area(answers["top"]["all"].numpy(), y[TRAIN:].numpy())


def area(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """Under the ROC curve: how often a row with label 1 has the higher score (Mann and Whitney 1947)."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    ones = labels > 0
    above = ranks[ones].sum() - ones.sum() * (ones.sum() + 1) / 2
    return float(above / (ones.sum() * (~ones).sum()))


# ---------------------------------------------------------------------- what a step takes


def in_parts(delay_ms: float, rate_mbit: float) -> list[Overlapped]:
    found: list[Overlapped] = []
    for parts in PARTS:
        setting = Setting(micro_batches=parts, rate_mbit=rate_mbit, warm_up=2)
        took = steps_of("W3V", LARGE_STEPS, delay_ms=delay_ms, setting=setting)
        base_s = found[0].step_s if found else statistics.fmean(took)
        low, high = interval_of_steps(base_s, took)
        faster = base_s / statistics.fmean(took)
        found.append(Overlapped(parts=parts, step_s=statistics.fmean(took), faster=faster, low=low, high=high))
    return found


def steps_of(workload: str, steps: int, *, delay_ms: float, setting: Setting) -> list[float]:
    """Seconds of each step in processes of their own, over an emulated link."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-far-") as name:
        ran = split_run(workload, steps, Path(name), TIMEOUT_S, "cpu", setting=replace(setting, delay_ms=delay_ms))
    return ran[WORKLOADS[workload].clients[0]].step_s


def table(learned: list[Learned], overlapped: list[Overlapped]) -> Iterator[str]:
    if learned:
        yield f"{'W2V':<18}{'AUC':>8}{'rounds':>8}{'ms a step':>11}{'seconds':>9}{'faster':>8}"
    for way in learned:
        took = f"{1e3 * way.step_s:11.1f}{way.seconds:9.1f}"
        yield f"{way.way:<18}{way.auc:8.4f}{way.rounds:8}{took}{way.faster:8.2f}"
    if overlapped:
        yield f"{'W3V, 16 MiB':<18}{'s a step':>8}{'faster':>8}   95%"
    for each in overlapped:
        interval = f"{each.low:.2f} to {each.high:.2f}"
        yield f"{f'M = {each.parts}':<18}{each.step_s:8.2f}{each.faster:8.2f}   {interval}"
    yield f"load averages {', '.join(f'{load:.2f}' for load in os.getloadavg())}"


if __name__ == "__main__":
    main()
