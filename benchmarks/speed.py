"""How fast a split run trains, measured beside the uncut model.

    python benchmarks/speed.py W1|W2|W2V|W3 [--json] [--pairs 7] [--steps N] [--device cuda]

A pair is: the uncut model in one process; the split run in two, W2V in three (lanes with mTLS, the path of real runs);
the uncut model again with malloc tuned. Every process has one thread. What counts are ratios within pairs, since
machines drift.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from children import ONE_THREAD, heard, started
from cutlayer.keys import make_demo_kit
from worker import SERVER, WARM_UP, Record, take_part, train_uncut
from workloads import WORKLOADS

MALLOC_TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
START_TIMEOUT_S = 120.0
WEIGHTS = "weights.safetensors"
RESAMPLES = 10_000
SAME_WEIGHTS = 1e-3
"""More than rounding in float32 makes of the longest workload, far less than one wrong step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One round of the comparison."""

    uncut: Record
    tuned: Record
    client: Record
    """Of the client whose steps took longest, if there are several."""
    server: Record
    sent_bytes: int
    """By all parties, in the whole run."""
    weight_difference: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--pairs", type=int, default=7, help="how often each run is repeated (default: 7)")
    parser.add_argument("--steps", type=int, default=0, help="steps of a run (default: the workload's own)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that one run may take (default: 600)")
    parser.add_argument("--device", default="cpu", help="where all parties, and the uncut model, compute")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    args = parser.parse_args()
    steps = args.steps or WORKLOADS[args.workload].steps
    if args.pairs < 1 or steps < WARM_UP + 2:
        parser.error(f"--pairs must be at least 1 and --steps at least {WARM_UP + 2}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    pairs = []
    for number in range(args.pairs):
        pairs.append(measure(args.workload, steps, args.timeout, args.device))
        if not args.quiet:
            note(number + 1, args.pairs, pairs[-1])
    result = summary(args.workload, pairs) | {"device": args.device}
    print(json.dumps(result) if args.json else table(result))
    if result["max_weight_difference"] > SAME_WEIGHTS:
        sys.exit(f"the split run's weights differ from the uncut run's by {result['max_weight_difference']:g}")


# ---------------------------------------------------------------------- runs in processes of their own


def measure(workload: str, steps: int, timeout_s: float, device: str) -> Pair:
    """Run the uncut model, the split run and the tuned uncut model, one after another."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-speed-") as name:
        folder = Path(name)
        uncut = uncut_run(workload, steps, folder, timeout_s, device, ONE_THREAD)
        expected = load_file(folder / WEIGHTS)
        ran = split_run(workload, steps, folder, timeout_s, device)
        got = {key: tensor for party in ran for key, tensor in load_file(folder / party / WEIGHTS).items()}
        assert got.keys() == expected.keys()
        difference = max(float((got[key] - expected[key]).abs().max()) for key in expected)
        tuned = uncut_run(workload, steps, folder, timeout_s, device, ONE_THREAD | MALLOC_TUNED)
    return Pair(
        uncut=uncut,
        tuned=tuned,
        client=max((ran[name] for name in WORKLOADS[workload].clients), key=mean_ms),
        server=ran[SERVER],
        sent_bytes=sum(each.sent_bytes for each in ran.values()),
        weight_difference=difference,
    )


def uncut_run(
    workload: str, steps: int, folder: Path, timeout_s: float, device: str, environment: Mapping[str, str]
) -> Record:
    with started(environment, train_uncut, workload, steps, folder, device) as uncut:
        return record(uncut, timeout_s)


def split_run(
    workload: str, steps: int, folder: Path, timeout_s: float, device: str, save_every: int = 0
) -> dict[str, Record]:
    """What each party measured."""
    parties = (*WORKLOADS[workload].clients, SERVER)
    make_demo_kit(folder / "keys", parties)
    with ExitStack() as stack:
        pipes = {
            party: stack.enter_context(
                started(ONE_THREAD, take_part, workload, steps, folder, device, save_every, party)
            )
            for party in parties
        }
        port = heard(pipes[SERVER], START_TIMEOUT_S)
        for party in WORKLOADS[workload].clients:
            pipes[party].send(port)
        return {party: record(pipe, timeout_s) for party, pipe in pipes.items()}


def record(pipe: Connection, timeout_s: float) -> Record:
    said = heard(pipe, timeout_s)
    assert isinstance(said, Record)
    return said


# ---------------------------------------------------------------------- what comes of it


def summary(workload: str, pairs: list[Pair]) -> dict[str, Any]:
    """Medians over pairs. `low` and `high` bound the ratio's median: 95%, by bootstrap over the pairs."""
    ratios = [mean_ms(pair.uncut) / mean_ms(pair.client) for pair in pairs]
    tuned = [mean_ms(pair.tuned) / mean_ms(pair.client) for pair in pairs]
    steps = len(pairs[0].client.step_s) + WARM_UP
    milliseconds = {
        "uncut": [mean_ms(pair.uncut) for pair in pairs],
        "tuned": [mean_ms(pair.tuned) for pair in pairs],
        "split": [mean_ms(pair.client) for pair in pairs],
    }
    low, high = interval(ratios)
    tuned_low, tuned_high = interval(tuned)
    return {
        "workload": workload,
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "ratio_tuned": round(statistics.median(tuned), 4),
        "low_tuned": round(tuned_low, 4),
        "high_tuned": round(tuned_high, 4),
        "bytes_per_step": round(pairs[0].sent_bytes / steps),
        "peak_mb": round(max(max(pair.client.peak_mb, pair.server.peak_mb) for pair in pairs)),
        "peak_mb_client": round(max(pair.client.peak_mb for pair in pairs)),
        "peak_mb_server": round(max(pair.server.peak_mb for pair in pairs)),
        "peak_mb_uncut": round(max(pair.uncut.peak_mb for pair in pairs)),
        "ms_per_step": {name: round(statistics.median(values), 3) for name, values in milliseconds.items()},
        "cpu_ms_per_step": {
            name: round(statistics.median(getattr(pair, name).cpu_ms for pair in pairs), 3)
            for name in ("uncut", "tuned", "client", "server")
        },
        "client_ms": stages([pair.client for pair in pairs], steps),
        "server_ms": stages([pair.server for pair in pairs], steps),
        "max_weight_difference": max(pair.weight_difference for pair in pairs),
        "loss_difference": max(abs(pair.server.loss - pair.uncut.loss) for pair in pairs),
        "final_loss": pairs[-1].server.loss,
        "pairs": len(pairs),
        "steps": steps,
        "ratios": [round(ratio, 4) for ratio in ratios],
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def mean_ms(run: Record) -> float:
    """Milliseconds per step; samples/s are the batch over it."""
    return 1e3 * statistics.fmean(run.step_s)


def stages(runs: list[Record], steps: int) -> dict[str, float]:
    """Milliseconds per step that a party's own thread spent on each stage, warm-up included."""
    return {
        name: round(1e3 * statistics.median(run.stage_s[name] for run in runs) / steps, 3) for name in runs[0].stage_s
    }


def interval(ratios: list[float]) -> tuple[float, float]:
    draws = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def note(number: int, total: int, pair: Pair) -> None:
    uncut, tuned, split = mean_ms(pair.uncut), mean_ms(pair.tuned), mean_ms(pair.client)
    print(
        f"pair {number} of {total}: uncut {uncut:.3f} ms, tuned {tuned:.3f} ms, split {split:.3f} ms a step; "
        f"ratio {uncut / split:.3f}",
        file=sys.stderr,
    )


def table(result: dict[str, Any]) -> str:
    took = result["ms_per_step"]
    return "\n".join([
        f"{result['workload']}: {result['pairs']} pairs of {result['steps']} steps",
        f"  samples/s, split to uncut        {result['ratio']:.3f}   95%: {result['low']:.3f} to {result['high']:.3f}",
        f"  samples/s, split to uncut tuned  {result['ratio_tuned']:.3f}   "
        f"95%: {result['low_tuned']:.3f} to {result['high_tuned']:.3f}",
        f"  ms a step                        uncut {took['uncut']:.3f}, tuned {took['tuned']:.3f}, "
        f"split {took['split']:.3f}",
        f"  bytes a step                     {result['bytes_per_step']:,}",
        f"  peak memory, MB                  client {result['peak_mb_client']}, server {result['peak_mb_server']}, "
        f"uncut {result['peak_mb_uncut']}",
        f"  largest difference of weights    {result['max_weight_difference']:.2g}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
