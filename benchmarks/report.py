"""All speed figures of the project in one Markdown report: one command, which can be stopped and goes on later.

    python benchmarks/report.py [--quick] [--pairs 7] [--only SECTION ...] [--output docs/benchmarks.md]
        [--device cpu|cuda]

Each figure is a run of `speed.py`, and the last ones of `callgrind.py`, in a process of its own. What is done is kept
in a JSON lines file beside the report, and is not done again on the same machine; without that file all begins anew.
The whole takes an hour and a half on two idle cores, `--quick` some minutes; `--only` measures some sections, and the
report keeps what was measured of the others. Without `--device` a GPU is measured too if there is one.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import callgrind

HERE = Path(__file__).parent
ROW_TIMEOUT_S = 3600.0
PAIRS = 7
"""Of the rows for which a ratio is wanted."""

CODECS = (
    "raw", "half", "half(kind=bf16)", "fp8", "int8", "int4", "sign", "adaptive", "topk(share=0.1)",
    "random_topk(share=0.1)", "feature_dropout(share=0.25)", "pq(part=16,words=16)", "zstd", "lz4",
    "topk(share=0.1)+int8",
)  # fmt: skip
CLIENTS = (1, 4, 16, 64)
RATES_MBIT, DELAYS_MS = (10, 100, 1000), (5, 50, 150)
STEP_BYTES = {"W1": 1.61e6, "W2V": 0.13e6, "W3": 33.6e6}
STEP_S, LINK_S = 0.05, 10.0
"""What a step computes at most, and for how long a row on a link is measured, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure: a command, what it is called, and which ratio is wanted of it."""

    section: str
    name: str
    arguments: tuple[str, ...]
    wanted: float | None = None

    @property
    def command(self) -> str:
        return f"python benchmarks/speed.py {shlex.join(self.arguments)}"


SECTIONS = {
    "Real runs": "Codec raw, one micro-batch: the path of `cutlayer run`.",
    "Overlap": 'The number of micro-batches is decided by the run itself (`micro_batches = "auto"`), before what is '
    "measured.",
    "Codecs": "W3, both ways, one micro-batch. The bound knows nothing of what encoding costs.",
    "Clients": "W1, clients taking turns of an epoch of their own rows, each in a process; all share two cores.",
    "Links": "An emulated link; the delay is that of one way. At 10 Mbit/s W3 goes as int8: raw, a step takes 27 s.",
    "GPU": "All parties and the uncut model on one GPU.",
}


def rows(*, quick: bool, devices: tuple[str, ...], pairs: int = PAIRS) -> Iterator[Row]:
    """What is to be measured, in order."""
    if "cpu" in devices:
        yield from _on_cpu(("--pairs", "1", "--steps", "40") if quick else (), quick=quick, pairs=pairs)
    if "cuda" in devices:
        some = ("--pairs", "1" if quick else "3", "--device", "cuda")
        for name in ("W1", "W2", "W2V", "W3"):
            yield Row(section="GPU", name=name, arguments=(name, *some))
        for codec in ("raw", "half"):
            arguments = ("W3", "--micro-batches", "auto", "--codec", codec, *some)
            yield Row(section="GPU", name=f"W3 {codec}, auto", arguments=arguments)


def _on_cpu(some: tuple[str, ...], *, quick: bool, pairs: int) -> Iterator[Row]:
    real = some or (("--pairs", str(pairs)) if pairs != PAIRS else ())
    for name, wanted in {"W1": 0.90, "W2": 0.33, "W2V": 0.25, "W3": 0.45}.items():
        yield Row(section="Real runs", name=name, arguments=(name, *real), wanted=wanted)
    for name, codec, wanted in (("W1", "", 0.97), ("W3", "", 0.62), ("W3", "half", 0.80)):
        arguments = (name, "--micro-batches", "auto", *(("--codec", codec) if codec else ()), *real)
        yield Row(section="Overlap", name=f"{name} {codec or 'raw'}", arguments=arguments, wanted=wanted)
    for codec in ("half", "int8") if quick else CODECS:
        few = some or ("--pairs", "1", "--steps", "30")
        yield Row(section="Codecs", name=codec, arguments=("W3", "--codec", codec, *few))
    for count in (4,) if quick else CLIENTS:
        few = some or ("--pairs", "1")
        yield Row(section="Clients", name=f"W1, {count}", arguments=("W1", "--clients", str(count), *few))
    yield from (_link("W1", 100, 50, 1),) if quick else _links()


def _links() -> Iterator[Row]:
    for rate in RATES_MBIT:
        for delay in DELAYS_MS:
            for workload, parts in (("W1", 1), ("W1", 4), ("W2V", 1), ("W3", 1), ("W3", 4)):
                yield _link(workload, rate, delay, parts)


def _link(workload: str, rate_mbit: int, delay_ms: int, parts: int) -> Row:
    """As many steps as take some seconds on such a link, in one pair."""
    codec = "int8" if workload == "W3" and rate_mbit == min(RATES_MBIT) else ""
    crossing_s = STEP_BYTES[workload] / (4 if codec else 1) * 8e-6 / rate_mbit
    steps = min(60, max(3, int(LINK_S / (STEP_S + crossing_s + 2e-3 * delay_ms))))
    warm_up = 1 if steps < 8 else 3
    arguments = [workload, "--rate-mbit", str(rate_mbit), "--delay-ms", str(delay_ms)]
    arguments += ["--micro-batches", str(parts)] if parts > 1 else []
    arguments += ["--codec", codec] if codec else []
    arguments += ["--pairs", "1", "--steps", str(steps + warm_up), "--warm-up", str(warm_up)]
    name = ", ".join(filter(None, [workload, codec, f"M = {parts}", f"{rate_mbit} Mbit/s", f"{delay_ms} ms"]))
    return Row(section="Links", name=name, arguments=tuple(arguments))


# ---------------------------------------------------------------------- doing it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few figures, less sure")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"of real runs and overlap (default: {PAIRS})")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help="measure no others")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="only this one")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    devices = (args.device,) if args.device else ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
    planned = list(rows(quick=args.quick, devices=devices, pairs=args.pairs))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = Done(args.output.with_suffix(".jsonl"), machine())
    failed = []
    for number, row in enumerate(planned):
        if row.command not in done.results and row.section in (args.only or SECTIONS):
            print(f"{number + 1} of {len(planned)}: {row.command}", file=sys.stderr)
            if fault := done.add(row.command, measured(HERE / "speed.py", *row.arguments, "--json", "--quiet")):
                failed.append(f"{row.command}: {fault}")
    if "cpu" in devices and not callgrind.missing() and COUNTING not in done.results:
        done.add(COUNTING, measured(HERE / "callgrind.py", "--json"))
    args.output.write_text("\n".join(written(planned, done, failed)) + "\n")
    print(args.output)
    if failed:
        sys.exit("\n".join(["not measured; another call tries again:", *failed]))


COUNTING = "python benchmarks/callgrind.py"


class Done:
    """Results by command, as one machine has measured them, kept in a file, a line each."""

    def __init__(self, path: Path, here: dict[str, str]) -> None:
        self._path, self.machine = path, here
        whole, _, cut_short = (path.read_text() if path.exists() else "").rpartition("\n")
        if cut_short:
            path.write_text(f"{whole}\n" if whole else "")
        kept = [json.loads(line) for line in whole.splitlines()]
        self.results: dict[str, dict[str, Any]] = {
            each["command"]: each for each in kept if each["machine"] == self.machine
        }  # fmt: skip

    def add(self, command: str, found: dict[str, Any] | str) -> str:
        """Keep a result. What went wrong is given back, and not kept."""
        if isinstance(found, str):
            return found
        entry = {
            "command": command,
            "machine": self.machine,
            "commit": commit(),
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "load": [round(load, 2) for load in os.getloadavg()],
            "result": found,
        }
        with self._path.open("a") as lines:
            lines.write(json.dumps(entry) + "\n")
        self.results[command] = entry
        return ""


def measured(script: Path, *arguments: str) -> dict[str, Any] | str:
    """The JSON object that a benchmark prints; or, in words, what it failed with."""
    ran = subprocess.Popen(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, complained = ran.communicate(timeout=ROW_TIMEOUT_S)
    except BaseException:
        ran.terminate()  # it ends its own processes
        ran.wait()
        raise
    if ran.returncode:
        return complained.strip().rpartition("\n")[2] or f"it ended with {ran.returncode}"
    found = json.loads(said)
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------------- where


def machine() -> dict[str, str]:
    """What figures depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{pages / 2**30:.0f} GiB",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "tls": ssl.OPENSSL_VERSION,
    }


def commit() -> str:
    """The commit of this checkout, with a plus if files differ from it."""
    asked = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    ran = subprocess.run(asked, capture_output=True, text=True)
    return ran.stdout.strip() or "unknown"


# ---------------------------------------------------------------------- the report


def written(planned: Iterable[Row], done: Done, failed: list[str]) -> Iterator[str]:
    """The report's lines."""
    planned = list(planned)
    yield "# Speed"
    yield ""
    yield "Made by `python benchmarks/report.py`. What the words mean: [benchmarks/README.md](../benchmarks/README.md)."
    yield ""
    yield from (f"- {name}: {value}" for name, value in done.machine.items())
    yield ""
    wanted = [row for row in planned if row.wanted is not None and row.command in done.results]
    reached = sum(done.results[row.command]["result"]["low_tuned"] >= (row.wanted or 0.0) for row in wanted)
    yield f"Of {len(wanted)} wanted ratios {reached} are reached by the lower end of the interval."
    for section, about in SECTIONS.items():
        if own := [row for row in planned if row.section == section]:
            yield from ["", f"## {section}", "", about, "", *_table(own, done)]
    yield from ["", "## Instructions of the session", "", *_counts(done)]
    if failed:
        yield from ["", "## Not measured", "", *(f"- {line}" for line in failed)]


COLUMNS = (
    "run", "ratio (95%)", "wanted", "bound", "to untuned (95%)", "M", "ms: tuned, split", "KiB a step",
    "pairs × steps", "load", "commit",
)  # fmt: skip


def _table(own: list[Row], done: Done) -> Iterator[str]:
    if not any(row.command in done.results for row in own):
        yield f'Not measured: `python benchmarks/report.py --only "{own[0].section}"` does it.'
        return
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for row in own:
        if (entry := done.results.get(row.command)) is not None:
            yield f"| {' | '.join(_cells(row, entry))} |"
    yield ""
    yield "<details><summary>commands</summary>"
    yield ""
    yield from ("```", *(row.command for row in own), "```", "", "</details>")


def _cells(row: Row, entry: dict[str, Any]) -> Iterator[str]:
    found = entry["result"]
    yield row.name
    yield f"**{found['ratio_tuned']:.3f}** ({found['low_tuned']:.3f} to {found['high_tuned']:.3f})"
    yield "" if row.wanted is None else f"{row.wanted:.2f}: {'yes' if found['low_tuned'] >= row.wanted else '**no**'}"
    yield f"{found['bound']:.3f}"
    yield f"{found['ratio']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    yield ", ".join(map(str, sorted(set(found["decided"]))))
    yield f"{found['ms_per_step']['tuned']:.2f}, {found['ms_per_step']['split']:.2f}"
    yield f"{found['bytes_per_step'] / 1024:,.0f}"
    yield f"{found['pairs']} × {found['measured_steps']}"
    yield ", ".join(f"{load:.1f}" for load in found["load"])
    yield entry["commit"]


def _counts(done: Done) -> Iterator[str]:
    yield "Machine instructions for each ticket, by `python benchmarks/callgrind.py`; a test allows 10% more or less."
    yield ""
    entry = done.results.get(COUNTING)
    counts = next(iter(entry["result"].values())) if entry else callgrind.golden()
    if not counts:
        yield f"Not counted: {callgrind.missing() or 'nothing is kept for this version of Python'}."
        return
    yield from ("| run | party | now | kept |", "|---|---|---|---|")
    kept = callgrind.golden()
    for case, parties in counts.items():
        for party, count in parties.items():
            golden = f"{kept[case][party]:,}" if party in kept.get(case, {}) else ""
            yield f"| {case} | {party} | {f'{count:,}' if entry else ''} | {golden} |"


if __name__ == "__main__":
    main()
