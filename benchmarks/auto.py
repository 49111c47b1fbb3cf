"""Whether `micro_batches = "auto"` is ever slower than one micro-batch: both split runs, in pairs, one after the other.

    python benchmarks/auto.py [W1 W2 W3 ...] [--pairs 7] [--steps N] [--rate-mbit R] [--delay-ms D] [--json]

A ratio above 1 says that auto is faster. Its 95% interval is by bootstrap over the pairs: auto is significantly slower
where the interval's upper end is below 1. Of the auto run the steps that try numbers are left out, as in `speed.py`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from speed import interval, mean_ms, split_run
from worker import SERVER
from workloads import WORKLOADS, Setting, clients_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["W1", "W2", "W3"], metavar="WORKLOAD")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="steps of a run (default: the workload's own)")
    parser.add_argument("--rate-mbit", type=float, default=0.0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of one way")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that one run may take")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.workloads) - WORKLOADS.keys():
        parser.error(f"no workload: {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    setting = Setting(rate_mbit=args.rate_mbit, delay_ms=args.delay_ms)
    slower = []
    for workload in args.workloads:
        found = compared(workload, args.steps or WORKLOADS[workload].steps, args.pairs, args.timeout, setting)
        print(json.dumps(found) if args.json else line(found), flush=True)
        slower += [workload] if found["high"] < 1 else []
    if slower:
        sys.exit(f"auto is slower than one micro-batch: {', '.join(slower)}")


def compared(workload: str, steps: int, pairs: int, timeout_s: float, setting: Setting) -> dict[str, Any]:
    """The ratio of steps/s, auto to one micro-batch; every other pair begins with auto."""
    ratios, decided = [], []
    for number in range(pairs):
        took = {}
        for parts in ("auto", 1) if number % 2 else (1, "auto"):
            took[parts], kept = measured(workload, steps, timeout_s, replace(setting, micro_batches=parts))
            decided += [kept] if parts == "auto" else []
        ratios.append(took[1] / took["auto"])
    low, high = interval(ratios)
    return {
        "workload": workload,
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "decided": decided,
        "steps": steps,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def measured(workload: str, steps: int, timeout_s: float, setting: Setting) -> tuple[float, int]:
    """Milliseconds of a step, seen at the client that took longest; how many micro-batches were kept."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-auto-") as folder:
        ran = split_run(workload, steps, Path(folder), timeout_s, "cpu", setting=setting)
    clients = [ran[name] for name in clients_of(WORKLOADS[workload], setting)]
    return max(map(mean_ms, clients)), ran[SERVER].micro_batches


def line(found: dict[str, Any]) -> str:
    return (
        f"{found['workload']}: auto is {found['ratio']:.3f} times as fast as one micro-batch "
        f"(95%: {found['low']:.3f} to {found['high']:.3f}); "
        f"micro-batches kept: {', '.join(map(str, found['decided']))}; load {found['load'][0]}"
    )


if __name__ == "__main__":
    main()
