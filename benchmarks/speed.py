"""How fast a split run trains, measured beside the uncut model.

    python benchmarks/speed.py W1|W2|W2V|W3 [--json] [--pairs 7] [--steps N] [--micro-batches N|auto] [--codec NAME]
        [--staleness S] [--cached-steps R] [--clients K] [--rate-mbit R] [--delay-ms D] [--device cuda]

A pair is: the uncut model in one process; the split run in two, W2V in three (lanes with mTLS, the path of real runs);
the uncut model again with malloc tuned. Every process has one thread. What counts are ratios within pairs, since
machines drift.
"""

import argparse
import json
import os
import platform
import pstats
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

from children import ONE_THREAD, heard, started
from cutlayer.keys import make_demo_kit
from emulated import EmulatedLink
from worker import PROFILE, SERVER, Record, take_part, train_uncut
from workloads import WARM_UP, WORKLOADS, Job, Setting, clients_of

MALLOC_TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
START_TIMEOUT_S = 120.0
WEIGHTS = "weights.safetensors"
RESAMPLES = 10_000
TOP_LINES = 14
SAME_WEIGHTS = 1e-3
"""More than rounding in float32 makes of the longest workload, far less than one wrong step."""
SAME_IN_PARTS = 0.1
"""Micro-batches sum in another order, and a ReLU or a maximum that falls the other way makes much of that: the uncut W1
itself, in the same parts, ends 0.024 from the whole one in float32, and 2e-16 in float64. `tests/equivalence` is exact.
"""
COMPUTING = ("forward", "backward", "step")
PLAIN = Setting()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One round of the comparison."""

    uncut: Record
    tuned: Record
    client: Record
    """Of the client whose steps took longest, if there are several that take each together."""
    server: Record
    step_s: list[float]
    """Of the split run: seen at that client, or at the server where clients take turns."""
    computed_s: tuple[float, ...]
    """Seconds a step of each party that computes at the same time as others, the server last."""
    up_bytes: float
    down_bytes: float
    """A step, of all clients."""
    weight_difference: float | None
    """None where the split run is not meant to be the uncut one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    args = parser.parse_args()
    steps = args.steps or WORKLOADS[args.workload].steps
    setting = Setting(
        **{name: getattr(args, name) for name in Setting.__dataclass_fields__ if name != "save_every"}
    )  # fmt: skip
    if fault := fault_of(args, steps, setting):
        parser.error(fault)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if setting.profile:
        profile(args.workload, steps, args.timeout, args.device, setting)
        return
    pairs = []
    for number in range(args.pairs):
        pairs.append(measure(args.workload, steps, args.timeout, args.device, setting))
        if not args.quiet:
            note(number + 1, args.pairs, pairs[-1])
    result = summary(args.workload, pairs, setting) | {"device": args.device}
    print(json.dumps(result) if args.json else table(result))
    if (result["max_weight_difference"] or 0.0) > (SAME_WEIGHTS if setting.micro_batches == 1 else SAME_IN_PARTS):
        sys.exit(f"the split run's weights differ from the uncut run's by {result['max_weight_difference']:g}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--pairs", type=int, default=7, help="how often each run is repeated (default: 7)")
    parser.add_argument("--steps", type=int, default=0, help="steps of a run (default: the workload's own)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"steps that are left out (default: {WARM_UP})")
    parser.add_argument("--micro-batches", type=micro_batches, default=1, metavar="N|auto", help="of a step")
    parser.add_argument("--codec", default="", help="such as half or topk(share=0.1)+int8: on all cuts, both ways")
    parser.add_argument("--staleness", type=int, default=0, help="steps begun before the oldest is through")
    parser.add_argument("--cached-steps", type=int, default=0, help="W2V: steps that each takes by itself after one")
    parser.add_argument("--clients", type=int, default=1, help="taking turns, each with its share of the rows")
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="of an emulated link, each way (default: any)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of one way; a round trip takes twice as long")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that one run may take (default: 600)")
    parser.add_argument("--device", default="cpu", help="where all parties, and the uncut model, compute")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--profile", action="store_true", help="no comparison: where each party's own thread is busy")


def micro_batches(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


def fault_of(args: argparse.Namespace, steps: int, setting: Setting) -> str:
    """What cannot be measured, or an empty word."""
    if args.pairs < 1 or setting.warm_up < 1 or steps < setting.warm_up + 1:
        return "--pairs and --warm-up must be at least 1, and --steps more than --warm-up"
    if setting.clients > 1 and (len(WORKLOADS[args.workload].clients) > 1 or setting.micro_batches == "auto"):
        return "--clients is for workloads of one client, without --micro-batches auto"
    try:
        Job.of(args.workload, steps, setting)
    except ValueError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------- runs in processes of their own


def measure(workload: str, steps: int, timeout_s: float, device: str, setting: Setting = PLAIN) -> Pair:
    """Run the uncut model, the split run and the tuned uncut model, one after another."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-speed-") as name:
        folder = Path(name)
        work = (workload, steps, folder, device, setting)
        with started(ONE_THREAD, train_uncut, *work) as process:
            uncut = record(process, timeout_s)
        expected = load_file(folder / WEIGHTS)
        ran = split_run(workload, steps, folder, timeout_s, device, setting.save_every, setting)
        got = {key: tensor for party in ran for key, tensor in load_file(folder / party / WEIGHTS).items()}
        assert got.keys() == expected.keys()
        difference = max(float((got[key] - expected[key]).abs().max()) for key in expected)
        with started(ONE_THREAD | MALLOC_TUNED, train_uncut, *work) as process:
            tuned = record(process, timeout_s)
    server, *clients = (ran[name] for name in (SERVER, *clients_of(WORKLOADS[workload], setting)))
    client = clients[0] if setting.clients > 1 else max(clients, key=mean_ms)
    computed = [sum(each.stage_s.get(name, 0.0) for name in COMPUTING) / server.steps for each in (*clients, server)]
    return Pair(
        uncut=uncut,
        tuned=tuned,
        client=client,
        server=server,
        step_s=(server if setting.clients > 1 else client).step_s,
        computed_s=tuple(computed) if setting.clients == 1 else (sum(computed[:-1]), computed[-1]),
        up_bytes=sum(each.sent_bytes for each in clients) / server.steps,
        down_bytes=server.sent_bytes / server.steps,
        weight_difference=difference if setting.exact else None,
    )


def split_run(
    workload: str,
    steps: int,
    folder: Path,
    timeout_s: float,
    device: str,
    save_every: int = 0,
    setting: Setting = PLAIN,
) -> dict[str, Record]:
    """What each party measured. With `save_every` they keep saves, one after so many steps; without, none."""
    clients, setting = clients_of(WORKLOADS[workload], setting), replace(setting, save_every=save_every)
    work = (take_part, workload, steps, folder, device, setting)
    make_demo_kit(folder / "keys", (*clients, SERVER))
    with ExitStack() as stack:

        def start(party: str) -> Connection:
            return stack.enter_context(started(ONE_THREAD, *work, party, one_of_many=setting.clients > 1))

        pipes = {SERVER: start(SERVER)}
        port = heard(pipes[SERVER], START_TIMEOUT_S) if setting.clients > 1 else 0  # many would keep it from its port
        pipes |= {party: start(party) for party in clients}
        port = port or heard(pipes[SERVER], START_TIMEOUT_S)
        if setting.rate_mbit or setting.delay_ms:
            shape = {"rate_mbit": setting.rate_mbit, "delay_ms": setting.delay_ms}
            port = stack.enter_context(EmulatedLink(("127.0.0.1", port), **shape)).port
        for party in clients:
            pipes[party].send(port)
        return {party: record(pipe, timeout_s) for party, pipe in pipes.items()}


def profile(workload: str, steps: int, timeout_s: float, device: str, setting: Setting) -> None:
    """Print the functions in which each party's own thread spent most. Profiling makes small ones look dearer."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-speed-") as name:
        for party, ran in split_run(workload, steps, Path(name), timeout_s, device, setting=setting).items():
            found: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
            found = pstats.Stats(str(Path(name) / party / PROFILE)).stats  # type: ignore[attr-defined]
            print(f"{party}: {mean_ms(ran):.2f} ms a step\n{'µs a step':>12}{'calls':>8}")
            for (file, line, what), (_, calls, own_s, _, _) in sorted(found.items(), key=lambda item: -item[1][2])[
                :TOP_LINES
            ]:
                place = f"{Path(file).stem}:{line} " if line else ""
                print(f"{1e6 * own_s / ran.steps:12.0f}{calls / ran.steps:8.1f}  {place}{what}")


def record(pipe: Connection, timeout_s: float) -> Record:
    said = heard(pipe, timeout_s)
    assert isinstance(said, Record)
    return said


# ---------------------------------------------------------------------- the bound


def bound(pair: Pair, setting: Setting) -> float:
    """The best ratio to the uncut run with malloc tuned that two cores could give.

    The uncut run's time is shared out as the parties' own computing was; sending and receiving cost TLS and the
    kernel's copies, as measured in the client's process. With one micro-batch a step is a chain: client, bytes, server,
    bytes, client. Otherwise it is as long as the busiest of the server, a client, either core and the link.
    """
    uncut_s = mean_ms(pair.tuned) / 1e3
    *clients, server = (uncut_s * part / sum(pair.computed_s) for part in pair.computed_s)
    send_s, receive_s = pair.client.tls_s
    rate = setting.rate_mbit * 1e6 / 8 or inf
    ways = (pair.up_bytes, pair.down_bytes)
    up_s, down_s = (each * send_s for each in ways)
    own = [one + (up_s + pair.down_bytes * receive_s) / len(clients) for one in clients]
    own.append(server + down_s + pair.up_bytes * receive_s)
    packed = max(*own, sum(own) / 2, *(each / rate for each in ways))
    if setting.micro_batches != 1 or setting.staleness or setting.clients > 1:
        return uncut_s / packed
    crossing = sum(each * max(send_s, receive_s, 1 / rate) for each in ways) + 2e-3 * setting.delay_ms
    stepping = pair.server.stage_s.get("step", 0.0) / pair.server.steps / pair.computed_s[-1]
    return uncut_s / max(packed, max(clients) + server * (1 - stepping) + crossing)


# ---------------------------------------------------------------------- what comes of it


def summary(workload: str, pairs: list[Pair], setting: Setting = PLAIN) -> dict[str, Any]:
    """Medians over pairs. `low` and `high` bound the ratio's median: 95%, by bootstrap over the pairs; with a single
    pair over its steps.
    """
    ratios = [mean_ms(pair.uncut) / split_ms(pair) for pair in pairs]
    tuned = [mean_ms(pair.tuned) / split_ms(pair) for pair in pairs]
    first, steps = pairs[0], pairs[0].server.steps
    milliseconds = {
        "uncut": [mean_ms(pair.uncut) for pair in pairs],
        "tuned": [mean_ms(pair.tuned) for pair in pairs],
        "split": [split_ms(pair) for pair in pairs],
    }
    differences = [pair.weight_difference for pair in pairs if pair.weight_difference is not None]
    result: dict[str, Any] = {"workload": workload} | {
        key: getattr(setting, key)
        for key in Setting.__dataclass_fields__
        if getattr(setting, key) != getattr(PLAIN, key)
    }
    for key, each in (("", ratios), ("_tuned", tuned)):
        base_s = mean_ms(first.tuned if key else first.uncut) / 1e3
        low, high = interval(each) if len(pairs) > 1 else interval_of_steps(base_s, first.step_s)
        result |= {
            f"ratio{key}": round(statistics.median(each), 4),
            f"low{key}": round(low, 4),
            f"high{key}": round(high, 4),
        }
    return result | {
        "bound": round(statistics.median(bound(pair, setting) for pair in pairs), 4),
        "decided": [pair.server.micro_batches for pair in pairs],
        "bytes_per_step": round(first.up_bytes + first.down_bytes),
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
        "tls_ms_per_mib": [
            round(1e3 * 2**20 * statistics.median(pair.client.tls_s[end] for pair in pairs), 4) for end in (0, 1)
        ],
        "max_weight_difference": max(differences, default=None),
        "loss_difference": max(abs(pair.server.loss - pair.uncut.loss) for pair in pairs),
        "final_loss": pairs[-1].server.loss,
        "pairs": len(pairs),
        "steps": steps,
        "measured_steps": len(first.step_s),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def mean_ms(run: Record) -> float:
    """Milliseconds per step; samples/s are the batch over it."""
    return 1e3 * statistics.fmean(run.step_s)


def split_ms(pair: Pair) -> float:
    return 1e3 * statistics.fmean(pair.step_s)


def stages(runs: list[Record], steps: int) -> dict[str, float]:
    """Milliseconds per step that a party's own thread spent on each stage, warm-up included."""
    return {
        name: round(1e3 * statistics.median(run.stage_s[name] for run in runs) / steps, 3) for name in runs[0].stage_s
    }


def interval(ratios: list[float]) -> tuple[float, float]:
    draws = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def interval_of_steps(base_s: float, step_s: list[float]) -> tuple[float, float]:
    """Of the ratio of one run, whose steps are drawn again."""
    draws = np.random.default_rng(0).choice(step_s, size=(RESAMPLES, len(step_s)))
    low, high = np.percentile(base_s / np.mean(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def note(number: int, total: int, pair: Pair) -> None:
    uncut, tuned, split = mean_ms(pair.uncut), mean_ms(pair.tuned), split_ms(pair)
    print(
        f"pair {number} of {total}: uncut {uncut:.3f} ms, tuned {tuned:.3f} ms, split {split:.3f} ms a step; "
        f"ratio {uncut / split:.3f}",
        file=sys.stderr,
    )


def table(result: dict[str, Any]) -> str:
    took, difference = result["ms_per_step"], result["max_weight_difference"]
    return "\n".join([
        f"{result['workload']}: {result['pairs']} pairs of {result['steps']} steps, "
        f"{result['measured_steps']} of them measured",
        f"  samples/s, split to uncut        {result['ratio']:.3f}   95%: {result['low']:.3f} to {result['high']:.3f}",
        f"  samples/s, split to uncut tuned  {result['ratio_tuned']:.3f}   "
        f"95%: {result['low_tuned']:.3f} to {result['high_tuned']:.3f}   bound: {result['bound']:.3f}",
        f"  ms a step                        uncut {took['uncut']:.3f}, tuned {took['tuned']:.3f}, "
        f"split {took['split']:.3f}",
        f"  micro-batches                    {', '.join(map(str, result['decided']))}",
        f"  bytes a step                     {result['bytes_per_step']:,}",
        f"  peak memory, MB                  client {result['peak_mb_client']}, server {result['peak_mb_server']}, "
        f"uncut {result['peak_mb_uncut']}",
        f"  largest difference of weights    {'not compared' if difference is None else f'{difference:.2g}'}",
        f"  load averages                    {', '.join(map(str, result['load']))}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
