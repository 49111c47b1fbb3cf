"""What crosses clients' borders in an epoch, measured beside the formulas of Singh et al. and of SplitFed.

    python benchmarks/costs.py [--clients 1 2 5 ...] [--picture PATH] [--json] [--quiet]

K clients share p rows, q floats a row cross at the cuts, and of the model's N parameters clients' segments hold ηN. An
epoch of float32 under plain SGD moves in all (Singh et al., arXiv 1909.09145; Thapa et al., arXiv 2004.12088):

    split      2pq + c·ηNK   c = 1 if weights are handed on (relay), 0 if they stay, 2 if they are averaged (SplitFed)
    federated  2NK           split costs less with more than K* = 2pq / ((2 − c·η)N) clients

Counted are activations, gradients and weights, as the parties' meters saw them; not labels, not evaluation. Fails if
bytes differ from a formula by more than 1%, or if at some K the other one of the two costs less.
"""

import argparse
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.simulation import Result

FLOAT_BYTES = 4
ROWS, BATCH = 500, 25
GRID, HANDED = (1, 2, 5, 10, 20, 50, 100), 10
"""Clients; and those of the runs whose hand-overs are weighed one by one."""
TOLERANCE_PERCENT = 1.0

MOVES = {"relay": 1, "alternating": 0, "splitfed_v1": 2, "splitfed_v2": 2}
"""c: how often a client's segments cross its border in an epoch. A hand-over counts once, at its sender."""
FEDERATED = "federated"
LOOKS = {
    FEDERATED: ("black", "o", 5), "relay": ("tab:blue", "o", 5), "alternating": ("tab:green", "s", 5),
    "splitfed_v1": ("tab:red", "o", 5), "splitfed_v2": ("tab:red", "x", 5),
}  # fmt: skip

Model = Callable[[], nn.Sequential]
Traffic = Counter[tuple[str, str]]
"""Bytes by client, and by what they are: `cut` (activations and gradients) or `weights`."""


def images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def columns() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and its cuts: clients run the layers `at_clients`, and so many `floats` a row cross at each cut."""

    name: str
    model: Model
    row: tuple[int, ...]
    cut: tuple[str, ...]
    at_clients: tuple[str, ...]
    floats: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """N."""
        return sum(p.numel() for p in self.model().parameters())

    @property
    def client_parameters(self) -> int:
        """ηN."""
        model = self.model()
        return sum(p.numel() for name in self.at_clients for p in model.get_submodule(name).parameters())

    def due(self, schedule: str, rows: float, clients: float) -> float:
        """By formula: bytes of an epoch of so many clients, that have so many rows in all."""
        if schedule == FEDERATED:
            return FLOAT_BYTES * 2 * self.parameters * clients
        return FLOAT_BYTES * (2 * rows * sum(self.floats) + MOVES[schedule] * self.client_parameters * clients)

    def crossover(self, schedule: str = "relay") -> float:
        """K*."""
        return 2 * ROWS * sum(self.floats) / (2 * self.parameters - MOVES[schedule] * self.client_parameters)


SETTINGS = (
    Setting(name="images", model=images, row=(1, 8, 8), cut=("2",), at_clients=("0",), floats=(64,)),
    Setting(name="columns", model=columns, row=(8,), cut=("1",), at_clients=("0",), floats=(64,)),
    Setting(name="u-shaped", model=columns, row=(8,), cut=("1", "3"), at_clients=("0", "4"), floats=(64, 24)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One point of the grid: bytes of an epoch over all clients."""

    setting: str
    clients: int
    schedule: str
    formula: float
    measured: int
    deviation: float
    """In percent of the formula: of the sum, or of the client that is furthest off its own."""
    winner_formula: str
    winner: str

    @property
    def holds(self) -> bool:
        return abs(self.deviation) <= TOLERANCE_PERCENT and self.winner == self.winner_formula


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[], help="K (default: 1 … 100, and around K*)")
    parser.add_argument("--picture", type=Path, help="where to draw the crossovers, as a PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    args = parser.parse_args()
    if any(not 1 <= count <= ROWS for count in args.clients):
        parser.error(f"--clients must be from 1 to {ROWS}, the number of rows that they share")
    torch.set_num_threads(1)
    rows = []
    for row in grid(args.clients):
        rows.append(row)
        if not args.quiet:
            print(f"{row.setting}, {row.clients} clients, {row.schedule}: {row.deviation:+.3f}%", file=sys.stderr)
    result = summary(rows, [hand_overs(setting) for setting in SETTINGS])
    print(json.dumps(result) if args.json else table(result))
    if args.picture:
        picture(rows).savefig(args.picture)
    if not all(row.holds for row in rows):
        sys.exit(f"a formula is missed by more than {TOLERANCE_PERCENT:g}%, or the other one costs less")


def grid(clients: Sequence[int] = ()) -> Iterator[Row]:
    """Setting by setting; by default `GRID` and the numbers of clients on both sides of the relay's crossover."""
    for setting in SETTINGS:
        around = {floor(setting.crossover()), ceil(setting.crossover())}
        for count in clients or sorted(around.union(GRID)):
            yield from compare(setting, count)


def compare(setting: Setting, clients: int, schedules: Sequence[str] = tuple(MOVES)) -> Iterator[Row]:
    """Federated learning first, then the schedules, each with the one of the two that costs less."""
    rows = {name: b - a for name, (a, b) in dealt(clients).items()}
    federated = epoch(setting, FEDERATED, clients)
    others = setting.due(FEDERATED, ROWS, clients), sum(federated.values())
    for schedule in (FEDERATED, *schedules):
        traffic = federated if schedule == FEDERATED else epoch(setting, schedule, clients)
        formula, measured = setting.due(schedule, ROWS, clients), sum(traffic.values())
        single = [percent(traffic[k, "cut"] + traffic[k, "weights"], setting.due(schedule, rows[k], 1)) for k in rows]
        yield Row(
            setting=setting.name, clients=clients, schedule=schedule, formula=formula, measured=measured,
            deviation=max(percent(measured, formula), *single, key=abs),
            winner_formula="split" if formula < others[0] else FEDERATED,
            winner="split" if measured < others[1] else FEDERATED,
        )  # fmt: skip


def percent(measured: float, formula: float) -> float:
    return 100 * (measured - formula) / formula


def epoch(setting: Setting, schedule: str, clients: int) -> Traffic:
    """What a run of two rounds carries more than a run of one: how runs begin and end cancels out.

    Federated averaging is SplitFed V1 with the whole model at the clients and one number at the server, since no part
    may be without parameters. What crosses that cut is not counted: in federated learning it stays at the client.
    """
    if schedule == FEDERATED:
        uncut = replace(setting, model=lambda: nn.Sequential(setting.model(), nn.PReLU()), cut=("0",))
        return Counter({key: n for key, n in epoch(uncut, "splitfed_v1", clients).items() if key[1] == "weights"})
    once, twice = (carried(simulated(setting, schedule, clients, rounds=rounds)) for rounds in (1, 2))
    twice.subtract(once)
    return twice


def dealt(clients: int) -> dict[str, tuple[int, int]]:
    """From which row to which each client has them, as evenly as can be."""
    ends = (number * ROWS // clients for number in range(clients + 1))
    return {f"client-{number}": span for number, span in enumerate(pairwise(ends))}


def simulated(setting: Setting, schedule: str, clients: int, *, rounds: int, **more: Any) -> Result:
    """A run on made-up rows, with `more` arguments of `simulate`. Nobody holds rows out, if they do not say so."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, *setting.row, generator=g), torch.randint(0, 10, (ROWS,), generator=g)
    data = {name: TensorDataset(x[a:b], y[a:b]) for name, (a, b) in dealt(clients).items()}
    terms: dict[str, Any] = {"rounds": rounds, "batch_size": BATCH, "held_out": 0.0, "lr": 0.01} | more
    topology = "vanilla" if len(setting.cut) == 1 else "u_shaped"
    return simulate(setting.model(), cut=setting.cut, data=data, topology=topology, schedule=schedule, **terms)


def carried(result: Result) -> Traffic:
    """What crossed each client's border, both ways: activations and gradients of training, and weights."""
    traffic: Traffic = Counter()
    clients = result.agreement.plan.clients
    for client in clients:
        for crossing in result.meters[client].crossings.values():
            if crossing.purpose == "train" and crossing.carries is None:
                traffic[client, "cut"] += crossing.payload_bytes
    for meter in result.meters.values():
        for moving in meter.moved.values():
            client = moving.source if moving.source in clients else moving.target
            traffic[client, "weights"] += moving.payload_bytes
    return traffic


def hand_overs(setting: Setting) -> dict[str, Any]:
    """Bytes of a relay's hand-over by optimizer, and of the closing broadcast, which no epoch counts."""
    said: dict[str, Any] = {"setting": setting.name, "formula": FLOAT_BYTES * setting.client_parameters}
    for optimizer in ("sgd", "adam"):
        result = simulated(setting, "relay", HANDED, rounds=1, optimizer=optimizer)
        sent = [moving for meter in result.meters.values() for moving in meter.moved.values() if moving.sent]
        last = result.agreement.plan.clients[-1]
        said[optimizer] = sum(m.payload_bytes for m in sent) / sum(m.frames for m in sent)
        said[f"closing_{optimizer}"] = sum(m.payload_bytes for m in sent if m.source == last)
    return said


def summary(rows: Sequence[Row], handed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "settings": [
            {"setting": s.name, "p": ROWS, "q": sum(s.floats), "N": s.parameters, "ηN": s.client_parameters}
            | {"crossover": {name: s.crossover(name) for name in MOVES}}
            for s in SETTINGS
        ],
        "rows": [asdict(row) for row in rows],
        "hand_overs": list(handed),
        "worst_deviation": max((row.deviation for row in rows), key=abs),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def table(result: dict[str, Any]) -> str:
    lines = []
    for s in result["settings"]:
        stars = ", ".join(f"{name} {star:.1f}" for name, star in s["crossover"].items())
        lines.append(f"{s['setting']}: p = {s['p']}, q = {s['q']}, N = {s['N']}, ηN = {s['ηN']}; K*: {stars}")
        lines.append("    K  schedule        formula    measured       off  less: by formula, measured")
        lines += [
            f"{r['clients']:5}  {r['schedule']:11} {r['formula']:11,.0f} {r['measured']:11,} {r['deviation']:+8.3f}%"
            + ("" if r["schedule"] == FEDERATED else f"  {r['winner_formula']}, {r['winner']}")
            for r in result["rows"]
            if r["setting"] == s["setting"]
        ]
        lines.append("")
    lines.append(f"hand-overs of a relay of {HANDED}, bytes")
    for h in result["hand_overs"]:
        adam = f"Adam {h['adam']:,.0f} = {h['adam'] / h['formula']:.3f} ηN"
        closing = f"closing broadcast {h['closing_sgd']:,} and {h['closing_adam']:,}"
        lines.append(f"  {h['setting']:9} ηN {h['formula']:,}; SGD {h['sgd']:,.0f}; {adam}; {closing}")
    return "\n".join([*lines, "", f"furthest off: {result['worst_deviation']:+.3f}%"])


def picture(rows: Sequence[Row]) -> Figure:
    """Lines by formula, dots as measured."""
    figure = Figure(figsize=(12, 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(SETTINGS), sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        panel(axes, setting, [row for row in rows if row.setting == setting.name])
    panels[0].set_ylabel("bytes an epoch, over all clients")
    panels[0].legend(fontsize=8, frameon=False)
    figure.suptitle("Activations, gradients and weights of an epoch: lines by formula, dots as measured")
    return figure


def panel(axes: Axes, setting: Setting, rows: Sequence[Row]) -> None:
    span = np.geomspace(1, max(2, *(row.clients for row in rows)), 100)
    for name, (colour, marker, size) in LOOKS.items():
        if name != "splitfed_v2":
            axes.plot(span, [setting.due(name, ROWS, count) for count in span], color=colour, linewidth=1)
        dots = [(row.clients, row.measured) for row in rows if row.schedule == name]
        axes.plot(*zip(*dots, strict=True), marker, color=colour, markersize=size, fillstyle="none", label=name)
    star = setting.crossover()
    height = setting.due(FEDERATED, ROWS, star)
    axes.vlines(star, 0, height, color="0.5", linestyle=":", linewidth=1)
    axes.text(1.08 * star, 0.04, f"relay: K* = {star:.1f}", transform=axes.get_xaxis_transform(), fontsize=9)
    axes.plot([star], [height], "*", color="tab:orange", markersize=8, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="clients K", xticks=(1, 10, 100), xticklabels=("1", "10", "100"))
    axes.set_title(f"{setting.name}: q = {sum(setting.floats)}, N = {setting.parameters:,}", fontsize=10)


if __name__ == "__main__":
    main()
