"""What saves cost: the split run with a save after every so many steps, beside the same run without any.

    python benchmarks/saves.py W1 [--every 100] [--steps 600] [--pairs 5] [--json]

A pair is both runs, one after the other, each with its parties in processes of their own over lanes with mTLS. The cost
is the part by which the time of all steps grows, stalls at saves included.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from speed import mean_ms, split_run
from worker import SERVER
from workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--every", type=int, default=100, help="steps from one save to the next (default: 100)")
    parser.add_argument("--steps", type=int, default=600, help="steps of a run (default: 600)")
    parser.add_argument("--pairs", type=int, default=5, help="how often both are run (default: 5)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that one run may take (default: 600)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    args = parser.parse_args()
    pairs = [
        measure(args.workload, args.steps, args.every, args.timeout, flip=bool(at % 2)) for at in range(args.pairs)
    ]
    costs = sorted(saved / plain - 1 for plain, saved, _ in pairs)
    result: dict[str, Any] = {
        "workload": args.workload,
        "every_steps": args.every,
        "pairs": args.pairs,
        "step_ms": statistics.median(plain for plain, _, _ in pairs),
        "step_ms_with_saves": statistics.median(saved for _, saved, _ in pairs),
        "cost": statistics.median(costs),
        "cost_min": costs[0],
        "cost_max": costs[-1],
        "server_thread_s": statistics.median(spent for _, _, spent in pairs),
    }
    print(json.dumps(result) if args.json else line(result))


def measure(workload: str, steps: int, every: int, timeout_s: float, *, flip: bool) -> tuple[float, float, float]:
    """Milliseconds a step without and with saves, and the seconds that the server's own thread spent on copying."""
    client = WORKLOADS[workload].clients[0]
    found = {}
    for save_every in (every, 0) if flip else (0, every):
        with tempfile.TemporaryDirectory(prefix="cutlayer-saves-") as name:
            found[save_every] = split_run(workload, steps, Path(name), timeout_s, "cpu", save_every)
    copying = found[every][SERVER].stage_s.get("save", 0.0)
    return mean_ms(found[0][client]), mean_ms(found[every][client]), copying


def line(result: dict[str, Any]) -> str:
    return (
        f"{result['workload']}, a save every {result['every_steps']} steps: {result['step_ms']:.2f} ms a step without, "
        f"{result['step_ms_with_saves']:.2f} with; cost {result['cost']:+.1%} "
        f"({result['cost_min']:+.1%} to {result['cost_max']:+.1%}, {result['pairs']} pairs)"
    )


if __name__ == "__main__":
    main()
