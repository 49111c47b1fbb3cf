"""Do the live monitor's leak alarms find a run that begins to leak, and do they leave honest runs alone? On MNIST.

    python benchmarks/leaks.py [--data FILE.npz] [--honest 42] [--leaking 18] [--steps 640] [--quick] [--json]

FILE as for `monitor.py`. Honest runs go through `HONEST` in turn, each with weights, rows and noise of its own; the
others through `LEAKING`, where one thing changes in the middle of the run, so that more leaks. One monitor looks at
both ends of the cut, as `cutlayer run --monitor` has it, but for the time: it may take what it wants. An alarm before
the change is a false one. The last table asks the rule again, after the runs, with other tolerances.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha
from cutlayer.defence.defence import Context, Defence
from cutlayer.defence.dependence import distance_correlation
from cutlayer.defence.isotropic import Isotropic
from cutlayer.defence.max_norm import MaxNorm
from cutlayer.observe.facts import Alarmed, Leaked
from cutlayer.observe.monitor import Monitor
from cutlayer.observe.thresholds import Rise
from cutlayer.observe.watch import LEAKS, Watch
from monitor import CLASSES, OWN, found, load, seen

TOLERANCES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
COLUMNS = 24
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One kind of run. `cut`: after convolutions ("maps"), those and a linear layer ("numbers"), or of a table.

    `noise`: standard deviation added at the cut; `dirichlet`: of a draw of the client's labels; `nopeek`: weight of the
    distance correlation in its loss; `gradients`: what defends those that the server sends.
    """

    name: str
    cut: Literal["maps", "numbers", "table"] = "maps"
    lr: float = 1e-3
    adam: bool = True
    batch: int = 64
    rows: int = OWN
    dirichlet: float = 0.0
    binary: bool = False
    batch_norm: bool = False
    noise: float = 0.0
    nopeek: float = 0.0
    gradients: Defence | None = None
    server: Literal["honest", "fsha"] = "honest"


MAPS = Setting(name="maps")
NUMBERS = Setting(name="32 numbers", cut="numbers")
TABLE = Setting(name="a table", cut="table")
NOISY = Isotropic(ratio=1.0)
HONEST = (
    MAPS,
    replace(MAPS, name="maps, noise σ = 1", noise=1.0),
    replace(MAPS, name="maps, labels Dirichlet(0.1)", dirichlet=0.1),
    replace(MAPS, name="maps, Adam, lr 0.02", lr=0.02),
    replace(MAPS, name="maps, BatchNorm and dropout in the top", batch_norm=True),
    replace(MAPS, name="maps, batches of 16", batch=16),
    replace(MAPS, name="maps, one digit against the rest, max-norm", binary=True, gradients=MaxNorm()),
    NUMBERS,
    replace(NUMBERS, name="32 numbers, SGD momentum 0.9, lr 0.1", lr=0.1, adam=False),
    replace(NUMBERS, name="32 numbers, Adam, lr 0.01", lr=0.01),
    replace(NUMBERS, name="32 numbers, 1,000 rows", rows=1000),
    replace(NUMBERS, name="32 numbers, NoPeek 1", nopeek=1.0),
    replace(NUMBERS, name="32 numbers, isotropic gradients", gradients=NOISY),
    replace(TABLE, name="a table, noise σ = 1, max-norm", noise=1.0, gradients=MaxNorm()),
)
LEAKING = (
    (replace(MAPS, name="noise σ = 1 removed from maps", noise=1.0), MAPS),
    (replace(TABLE, name="noise σ = 1 removed from a table", noise=1.0), TABLE),
    (replace(NUMBERS, name="NoPeek 1 removed", nopeek=1.0), NUMBERS),
    (replace(MAPS, name="max-norm removed from gradients", gradients=MaxNorm()), MAPS),
    (replace(NUMBERS, name="isotropic noise removed from gradients", gradients=NOISY), NUMBERS),
    (replace(NUMBERS, name="a server that hijacks by FSHA"), replace(NUMBERS, server="fsha")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What came of one run: the scores of each statistic, each with its step, and the steps of the alarms."""

    setting: str
    change: int | None
    seed: int
    scores: dict[str, list[tuple[int, float]]]
    alarms: dict[str, int]
    seconds: float
    monitor_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST as .npz")
    parser.add_argument("--honest", type=int, default=42)
    parser.add_argument("--leaking", type=int, default=18)
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--only", default="", help="settings with these words in their names")
    parser.add_argument("--quick", action="store_true", help="three honest runs and one that leaks")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    args = parser.parse_args()
    path = found(args.data)
    if path is None:
        print("skipped: no MNIST; name it with --data or CUTLAYER_DATA")
        return
    torch.set_num_threads(1)
    data, rows = load(path), []
    for number, (before, after) in enumerate(chosen(args)):
        change = None if after is None else args.steps // 2
        rows.append(Run(before, data, seed=args.seed + number).until(args.steps, change, after))
        print(brief(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps([asdict(row) for row in rows], ensure_ascii=False) if args.json else table(rows, args.steps))


def chosen(args: argparse.Namespace) -> list[tuple[Setting, Setting | None]]:
    """Each run's setting, and the one from its middle on."""
    honest = [setting for setting in HONEST if args.only in setting.name]
    leaking = [pair for pair in LEAKING if args.only in pair[0].name]
    if args.quick:
        return [(HONEST[1], None), (NUMBERS, None), (HONEST[-1], None), LEAKING[4]]
    plain: list[tuple[Setting, Setting | None]] = [
        (honest[n % len(honest)], None) for n in range(args.honest) if honest
    ]
    return plain + [leaking[n % len(leaking)] for n in range(args.leaking) if leaking]


# ---------------------------------------------------------------------- one run


def networks(setting: Setting) -> tuple[nn.Module, nn.Module]:
    """The client's segment and the server's."""
    maps = (nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
    if setting.cut == "table":
        two = (nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        return nn.Sequential(nn.Linear(COLUMNS, 16), nn.Tanh()), nn.Sequential(*two)
    if setting.cut == "numbers":
        last = (nn.Flatten(), nn.Linear(784, 32), nn.ReLU())
        return nn.Sequential(*maps, *last), nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    hidden: tuple[nn.Module, ...] = (nn.Linear(784, 64), nn.ReLU())
    if setting.batch_norm:
        hidden = (nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(*maps), nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, CLASSES))


def columns(count: int) -> Data:
    """Rows of a table, mixtures of six sources, and a rare label that two of them decide."""
    draws = torch.Generator().manual_seed(7)
    sources, mixing = torch.randn(count, 6, generator=draws), torch.randn(6, COLUMNS, generator=draws)
    x = sources @ mixing + 0.3 * torch.randn(count, COLUMNS, generator=draws)
    return x, (sources[:, 0] + sources[:, 1] * sources[:, 2] > 1.5).long()


def own_rows(setting: Setting, labels: Tensor) -> Tensor:
    """The places of the client's rows."""
    if not setting.dirichlet:
        return torch.randperm(min(OWN, len(labels)))[: setting.rows]
    # Of the global generator: `torch.distributions` knows no other.
    shares = torch.distributions.Dirichlet(torch.full((CLASSES,), setting.dirichlet)).sample()
    parts = [(labels[:OWN] == label).nonzero()[:, 0] for label in range(CLASSES)]
    drawn = [rows[torch.randint(len(rows), (round(5000 * s),))] for rows, s in zip(parts, shares.tolist(), strict=True)]
    return torch.cat(drawn)


class Run:
    """Both parties in one loop, and a monitor that hears what crosses."""

    def __init__(self, setting: Setting, data: Data, *, seed: int) -> None:
        torch.manual_seed(seed)
        self._setting, self._seed = setting, seed
        self._x, labels = columns(OWN) if setting.cut == "table" else data
        self._y = (labels == 3).long() if setting.binary else labels
        self._places = own_rows(setting, self._y)
        self._client, self._top = networks(setting)
        self._optimizers = [self._optimizer(part) for part in (self._client, self._top)]
        self._facts: list[Leaked | Alarmed] = []
        classes = 2 if setting.binary or setting.cut == "table" else CLASSES
        self._monitor = Monitor(Watch(classes=classes, share=0.99, advance_s=1e6), self._facts.append, seed=seed)
        self._attack: Fsha | None = None

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        if self._setting.adam:
            return torch.optim.Adam(network.parameters(), self._setting.lr)
        return torch.optim.SGD(network.parameters(), self._setting.lr, momentum=0.9)

    def until(self, steps: int, change: int | None, after: Setting | None) -> Row:
        """A whole run; from step `change` on it is another."""
        began, name = time.perf_counter(), self._setting.name
        scores: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        alarms: dict[str, int] = {}
        for step in range(steps):
            if step == change and after is not None:
                self._setting = after
            self._step(step)
            for fact in self._facts:
                if isinstance(fact, Alarmed):
                    alarms.setdefault(fact.statistic, step)
                else:
                    scores[fact.statistic].append((step, round(fact.value, 4)))
            self._facts.clear()
        return Row(
            setting=name, change=change, seed=self._seed, scores=dict(scores), alarms=alarms,
            seconds=time.perf_counter() - began, monitor_s=self._monitor.spent_s,
        )  # fmt: skip

    def _step(self, step: int) -> None:
        setting = self._setting
        places = self._places[torch.randint(len(self._places), (setting.batch,))]
        x, y = self._x[places], self._y[places]
        z = self._client(x)
        released = z + setting.noise * torch.randn_like(z)
        shown = seen(step, released, sent=True, rows=(x, y, places))
        self._monitor(replace(shown, labels=None))
        gradient = self._answer(released.detach(), y)
        if setting.gradients is not None:
            draws = torch.Generator().manual_seed(self._seed * 10**6 + step)
            gradient = setting.gradients.release(gradient, Context(generator=draws, labels=y), {})
        self._monitor(replace(shown, way="backward", tensor=gradient, inputs=(), places=None))
        loss = (released * gradient).sum() / len(y)
        if setting.nopeek:
            loss = loss + setting.nopeek * distance_correlation(x.flatten(1), released)
        self._optimizers[0].zero_grad()
        loss.backward()
        self._optimizers[0].step()

    def _answer(self, z: Tensor, y: Tensor) -> Tensor:
        """What the server sends: the gradient of the loss summed over rows."""
        if self._setting.server == "fsha":
            if self._attack is None:
                self._attack = Fsha(width=16)
                self._attack.begin(Knowledge(auxiliary=(self._x[OWN:], None)), z, self._seed)
            return self._attack.answer(z, None)
        leaf = z.requires_grad_()
        loss = F.cross_entropy(self._top(leaf), y, reduction="sum")
        self._optimizers[1].zero_grad()
        (loss / len(y)).backward()  # type: ignore[no-untyped-call]
        self._optimizers[1].step()
        assert leaf.grad is not None
        return leaf.grad * len(y)


# ---------------------------------------------------------------------- what comes of it


def brief(row: Row) -> str:
    ends = {name: (values[len(values) // 3][1], values[-1][1]) for name, values in row.scores.items()}
    return f"{row.seed} {row.setting}: {row.alarms} {ends} {row.seconds:.0f} s, {row.monitor_s:.0f} of the monitor"


def table(rows: Sequence[Row], steps: int) -> str:
    """In Markdown: honest runs by statistic, runs that leak by setting, and what other tolerances would give."""
    honest, leaking = ([row for row in rows if (row.change is None) is kind] for kind in (True, False))
    lines = ["| honest runs | with a false alarm | " + " | ".join(LEAKS) + " |", "|---|---:|" + "---:|" * len(LEAKS)]
    for name in [*dict.fromkeys(row.setting for row in honest), "all"]:
        of = [row for row in honest if name in (row.setting, "all")]
        each = " | ".join(str(sum(leak in row.alarms for row in of)) for leak in LEAKS)
        lines.append(f"| {name}: {len(of)} | {sum(bool(row.alarms) for row in of)} | {each} |")
    lines += [
        "",
        "| what leaks from the middle on | runs | found | batches until then, median (last) | by | too early |",
    ]
    lines += ["|---|---:|---:|---:|---|---:|"]
    for name in dict.fromkeys(row.setting for row in leaking):
        lines.append(found_line(name, [row for row in leaking if row.setting == name]))
    lines += ["", "| tolerance | honest runs with an alarm | leaking runs found | too early |", "|---:|---:|---:|---:|"]
    for tolerance in TOLERANCES:
        again = [replace(row, alarms=replayed(row, tolerance)) for row in rows]
        wrong = sum(bool(row.alarms) for row in again if row.change is None)
        right, early = (sum(map(what, (row for row in again if row.change))) for what in (is_found, is_early))
        lines.append(f"| {tolerance} | {wrong} of {len(honest)} | {right} of {len(leaking)} | {early} |")
    return "\n".join([*lines, "", f"Runs of {steps} steps."])


def found_line(name: str, of: Sequence[Row]) -> str:
    took = sorted(min(at for at in row.alarms.values()) - (row.change or 0) for row in of if is_found(row))
    when = f"{took[len(took) // 2]} ({took[-1]})" if took else ""
    by = ", ".join(leak for leak in LEAKS if any(leak in row.alarms for row in of))
    return f"| {name} | {len(of)} | {len(took)} | {when} | {by} | {sum(map(is_early, of))} |"


def is_early(row: Row) -> bool:
    return any(at < (row.change or 0) for at in row.alarms.values())


def is_found(row: Row) -> bool:
    return bool(row.alarms) and not is_early(row)


def replayed(row: Row, tolerance: float) -> dict[str, int]:
    """The alarms that the rule gives on a run's scores with another tolerance."""
    watch = Watch()
    alarms: dict[str, int] = {}
    for name, scores in row.scores.items():
        rule = Rise(block=watch.calibrate, tolerance=tolerance, false_alarms=watch.false_alarms)
        at = next((step for step, value in scores if rule.add(value)), None)
        if at is not None and name in LEAKS:
            alarms[name] = at
    return alarms


if __name__ == "__main__":
    main()
