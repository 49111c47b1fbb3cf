"""Does the live monitor find a hijacked client, and does it leave honest runs alone? On MNIST.

    python benchmarks/monitor.py [--data FILE.npz] [--honest 100] [--attacked 20] [--steps 500] [--quick] [--json]

FILE has `x_train y_train`, uint8 images (default: ../shared/data/mnist.npz, else the environment's CUTLAYER_DATA). The
runs go through `SETTINGS` in turn, each with weights, rows and noise of its own; training is written out here, and only
the monitor and the attack are the product's: FSHA, by default with narrower networks than its own, which take seconds a
step on one core. An attacked run ends at the alarm; an honest one goes on to `--steps`. The
time of the monitor is its own count, as a share of the run's. `leaks.py` does the like for alarms of leaks.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha
from cutlayer.observe.facts import Alarmed, Leaked
from cutlayer.observe.monitor import Monitor
from cutlayer.observe.tap import Seen
from cutlayer.observe.watch import Watch
from cutlayer.protocol.messages import Ticket

CLASSES, OWN = 10, 40_000
"""The client has the first `OWN` rows; the attacker has the others."""
Top = Literal["hidden", "linear", "batch_norm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One kind of run. `noise`: standard deviation added at the cut; `labels`: those that the client has, if not all;
    `alpha`: of a Dirichlet draw of its labels; `binary`: one digit against all others."""

    name: str
    lr: float = 1e-3
    adam: bool = True
    batch: int = 64
    noise: float = 0.0
    labels: tuple[int, ...] = ()
    alpha: float = 0.0
    binary: bool = False
    top: Top = "hidden"


SETTINGS = (
    Setting(name="plain"),
    Setting(name="noise at the cut, σ = 1", noise=1.0),
    Setting(name="two labels only", labels=(3, 8)),
    Setting(name="labels Dirichlet(0.1)", alpha=0.1),
    Setting(name="Adam, lr 0.02", lr=0.02),
    Setting(name="SGD momentum 0.9, lr 0.1", lr=0.1, adam=False),
    Setting(name="BatchNorm and dropout in the top", top="batch_norm"),
    Setting(name="linear top", top="linear"),
    Setting(name="batches of 16", batch=16),
    Setting(name="one digit against the rest", binary=True),
)
QUICK = (SETTINGS[0], SETTINGS[1], SETTINGS[5])


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What came of one run: the step of the alarm, if there was one; how many scores; the monitor's share of time.

    `lowest`: the least score, or, of probes, the least mean of ten.
    """

    setting: str
    attacked: bool
    seed: int
    alarm: int | None
    scores: int
    lowest: float
    seconds: float
    share: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST as .npz")
    parser.add_argument("--honest", type=int, default=100)
    parser.add_argument("--attacked", type=int, default=20)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--share", type=float, default=Watch().share, help="of the time, for the monitor")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--width", type=int, default=8, help="of the attacker's networks (its own default: 32)")
    parser.add_argument("--blocks", type=int, default=2, help="of the attacker's critic (its own default: 6)")
    parser.add_argument("--quick", action="store_true", help="three settings, one run of each kind, 200 steps")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    args = parser.parse_args()
    path = found(args.data)
    if path is None:
        print("skipped: no MNIST; name it with --data or CUTLAYER_DATA")
        return
    torch.set_num_threads(1)
    images, labels = load(path)
    settings, steps = (QUICK, 200) if args.quick else (SETTINGS, args.steps)
    counts = {True: len(QUICK), False: len(QUICK)} if args.quick else {True: args.attacked, False: args.honest}
    rows = []
    for attacked, count in counts.items():
        for number in range(count):
            setting = settings[number % len(settings)]
            attack = Fsha(width=args.width, blocks=args.blocks) if attacked else None
            watch, seed = Watch(classes=CLASSES, share=args.share), args.seed + number
            rows.append(run(setting, watch, (images, labels), attack, seed=seed, steps=steps))
            print(json.dumps(asdict(rows[-1]), ensure_ascii=False), file=sys.stderr, flush=True)
    print(json.dumps([asdict(row) for row in rows], ensure_ascii=False) if args.json else table(rows, steps))


def found(named: Path | None) -> Path | None:
    """The file named, or where it may lie."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist.npz"
    told = os.environ.get("CUTLAYER_DATA")
    for path in (named, shared, Path(told) if told else None):
        if path is not None and path.is_file():
            return path
    return None


def load(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        x, y = torch.from_numpy(file["x_train"]), torch.from_numpy(file["y_train"])
    return x.float().div(255)[:, None], y.long()


# ---------------------------------------------------------------------- one run


def bottom() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()
    )


def top(kind: Top, classes: int) -> nn.Module:
    match kind:
        case "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
        case "hidden":
            return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, classes))
        case "batch_norm":
            return nn.Sequential(
                nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
                nn.Linear(1568, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, classes),
            )  # fmt: skip


class Server:
    """Answers activations with the gradient of the summed loss; or hijacks the client."""

    def __init__(self, setting: Setting, others: Tensor, attack: Fsha | None, seed: int) -> None:
        self._top = top(setting.top, CLASSES)
        self._optimizer = optimizer(setting, self._top)
        self._attack = attack
        self._others, self._seed, self._begun = others, seed, False

    def answer(self, activations: Tensor, labels: Tensor) -> Tensor:
        if self._attack is not None:
            if not self._begun:
                self._attack.begin(Knowledge(auxiliary=(self._others, None)), activations, self._seed)
                self._begun = True
            return self._attack.answer(activations, None)
        leaf = activations.detach().requires_grad_()
        loss = F.cross_entropy(self._top(leaf), labels, reduction="sum")
        self._optimizer.zero_grad()
        (loss / len(labels)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        assert leaf.grad is not None
        return leaf.grad * len(labels)


def optimizer(setting: Setting, network: nn.Module) -> torch.optim.Optimizer:
    if setting.adam:
        return torch.optim.Adam(network.parameters(), setting.lr)
    return torch.optim.SGD(network.parameters(), setting.lr, momentum=0.9)


def run(
    setting: Setting, watch: Watch, data: tuple[Tensor, Tensor], attack: Fsha | None, *, seed: int, steps: int
) -> Row:
    """One run: attacked from its first step, or honest."""
    torch.manual_seed(seed)
    images, labels = data
    labels = (labels == 3).long() if setting.binary else labels
    places = own_rows(setting, labels)
    client, server = bottom(), Server(setting, images[OWN:], attack, seed)
    learner = optimizer(setting, client)
    facts: list[Leaked | Alarmed] = []
    monitor = Monitor(watch, facts.append, seed=seed)
    began, alarm = time.perf_counter(), None
    for step in range(steps):
        drawn = places[torch.randint(len(places), (setting.batch,))]
        x, y = images[drawn], labels[drawn]
        z = client(x)
        released = z + setting.noise * torch.randn_like(z)
        monitor(seen(step, released, sent=True, rows=(x, y, drawn)))
        gradient = server.answer(released.detach(), y)
        monitor(seen(step, gradient, sent=False, rows=(x, y, drawn)))
        learner.zero_grad()
        released.backward(gradient / len(y))
        learner.step()
        if any(isinstance(fact, Alarmed) for fact in facts):
            alarm = step
            break
    seconds = time.perf_counter() - began
    scores = [fact.value for fact in facts if isinstance(fact, Leaked) and fact.statistic == "hijack"]
    return Row(
        setting=setting.name, attacked=attack is not None, seed=seed, alarm=alarm, scores=len(scores),
        lowest=min(scores, default=0.0), share=monitor.spent_s / seconds, seconds=seconds,
    )  # fmt: skip


def own_rows(setting: Setting, labels: Tensor) -> Tensor:
    """The places of the client's rows, each to be drawn with the same chance."""
    mine = labels[:OWN]
    if setting.labels:
        return torch.isin(mine, torch.tensor(setting.labels)).nonzero()[:, 0]
    if not setting.alpha:
        return torch.arange(OWN)
    # Of the global generator: `torch.distributions` knows no other.
    shares = torch.distributions.Dirichlet(torch.full((CLASSES,), setting.alpha)).sample()
    parts = []
    for label, share in enumerate(shares.tolist()):
        rows = (mine == label).nonzero()[:, 0]
        parts.append(rows[torch.randint(len(rows), (round(5000 * share),))])
    return torch.cat(parts)


def seen(step: int, tensor: Tensor, *, sent: bool, rows: tuple[Tensor, Tensor, Tensor]) -> Seen:
    x, y, places = rows
    return Seen(
        party="hospital-a", peer="lab", edge="bottom->top", way="forward" if sent else "backward", sent=sent,
        ticket=Ticket(turn=0, owner="hospital-a", step=step, micro=0, purpose="train"),
        tensor=tensor.detach(), inputs=(x,), labels=y, places=places,
    )  # fmt: skip


# ---------------------------------------------------------------------- what comes of it


def time_taken(honest: Sequence[Row]) -> str:
    return f"{sum(row.share for row in honest) / len(honest):.1%}" if honest else ""


def table(
    rows: Sequence[Row],
    steps: int,
    what: str = "time of the monitor",
    told: Callable[[Sequence[Row]], str] = time_taken,
) -> str:
    """In Markdown: by setting, and all together. `what` the last column has, and how it is told of honest runs."""
    lines = [
        f"| setting | attacked | found | at step, median (last) | honest | false alarms | {what} |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in [*dict.fromkeys(row.setting for row in rows), "all"]:
        of = [row for row in rows if name in (row.setting, "all")]
        attacked, honest = ([row for row in of if row.attacked is kind] for kind in (True, False))
        at = sorted(row.alarm for row in attacked if row.alarm is not None)
        when = f"{at[len(at) // 2]} ({at[-1]})" if at else ""
        wrong = sum(row.alarm is not None for row in honest)
        lines.append(f"| {name} | {len(attacked)} | {len(at)} | {when} | {len(honest)} | {wrong} | {told(honest)} |")
    return "\n".join([*lines, "", f"Honest runs of {steps} steps; the attack begins at the first step."])


if __name__ == "__main__":
    main()
