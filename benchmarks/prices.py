"""What defences cost and what they hide, where `cutlayer attack --matrix` on ten classes does not show it.

    python benchmarks/prices.py [binary] [patches] [--data MNIST.npz] [--rows 4000] [--json]

MNIST at one client, `vanilla`, Adam, two rounds of mini-batches of 64, a fifth of the rows held out. `binary`: odd or
even, cut before the last layer, where gradients tell labels. `patches`: ten classes by a small vision transformer, cut
after its first block, with and without positions. Accuracy is on held-out rows; under `label_dp` of answers, or, with a
`correction`, an estimate of what it is on true labels. Attackers know the held-out rows. One thread.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer.attack.registry import build
from cutlayer.plan.methods import methods_from
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.studies.matrix import Case, Cell, Question, matrix

WIDTH, SIDE, BATCH, ROUNDS = 32, 7, 64, 2
CLIENT = "client"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A network, where it is cut, what defends it, and what attacks it."""

    network: Callable[[], nn.Module]
    cut: str
    defences: tuple[str, ...]
    attacks: str
    label: Callable[[Tensor], Tensor] = lambda digits: digits


class Patches(nn.Module):
    """Tokens `[B, 16, WIDTH]` of the patches of an image, with a learned position each, if wanted."""

    def __init__(self, *, positions: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, SIDE, stride=SIDE)
        self.places = nn.Parameter(0.5 * torch.randn((28 // SIDE) ** 2, WIDTH)) if positions else None

    def forward(self, x_BCHW: Tensor) -> Tensor:  # noqa: N803
        tokens: Tensor = self.embed(x_BCHW).flatten(2).transpose(1, 2)
        return tokens if self.places is None else tokens + self.places


class Mean(nn.Module):
    """Over a row's tokens, which sees no order."""

    def forward(self, x_BTD: Tensor) -> Tensor:  # noqa: N803
        return x_BTD.mean(1)


def convolutions(*last: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *last,
    )  # fmt: skip


def transformer(*, positions: bool) -> nn.Module:
    blocks = [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(Patches(positions=positions), *blocks, Mean(), nn.Linear(WIDTH, 10))


DECODERS = "decoder(epochs=8)+aligned_decoder(epochs=8)"
SHUFFLED = ("none", "patch_shuffle(share=0.4)", "patch_shuffle(share=1)")
TASKS = {
    "binary": Task(
        network=lambda: convolutions(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 2)),
        cut="8",
        defences=(
            "none",
            "max_norm",
            "marvell(s=1)",
            "marvell(s=4)",
            "isotropic(ratio=1)",
            "isotropic(ratio=4)",
            "label_dp(epsilon=1)",
            "label_dp(epsilon=1,correction=forward)",
            "label_dp(epsilon=1,correction=backward)",
        ),
        attacks="label_leak",
        label=lambda digits: digits % 2,
    ),
    "patches": Task(
        network=lambda: transformer(positions=True),
        cut="1",
        defences=SHUFFLED,
        attacks="decoder(epochs=8)+aligned_decoder(epochs=8)",
    ),
    "patches, no positions": Task(
        network=lambda: transformer(positions=False),
        cut="1",
        defences=SHUFFLED,
        attacks="decoder(epochs=8)+aligned_decoder(epochs=8)",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="binary or patches (default: both)")
    default = Path(os.environ.get("CUTLAYER_DATA", "../shared/data/mnist.npz"))
    parser.add_argument("--data", type=Path, default=default, help="an .npz with x_train y_train")
    parser.add_argument("--rows", type=int, default=4000, help="of the client (default: 4000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    if not args.data.is_file():
        sys.exit(f"skipped: {args.data} is not there; name an .npz of MNIST with --data")
    torch.set_num_threads(1)
    chosen = {name: task for name, task in TASKS.items() if not args.tasks or name.split(",")[0] in args.tasks}
    if not chosen:
        sys.exit(f"no task is called {', '.join(args.tasks)}: binary or patches")
    found = {name: measured(task, args.data, args.rows) for name, task in chosen.items()}
    if args.json:
        print(json.dumps({name: [as_data(cell) for cell in cells] for name, cells in found.items()}))
    else:
        print("\n\n".join(f"{name}\n\n{table(cells)}" for name, cells in found.items()))


def measured(task: Task, data: Path, rows: int) -> list[Cell]:
    """A cell for each defence, and attack on the client's rows and labels as they are."""
    with np.load(data) as held:
        x, y = held["x_train"][:rows], held["y_train"][:rows]
    images = torch.from_numpy(x.astype(np.float32) / 255)[:, None]
    labels = task.label(torch.from_numpy(y.astype(np.int64)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = task.network()
    question = Question(
        terms=terms(task.cut),
        model=network,
        data={CLIENT: TensorDataset(images, labels)},
        on_traffic=build(methods_from(task.attacks))[0],
    )
    cases = [Case(cut=(task.cut,), defence=defence) for defence in task.defences]
    cells = matrix(question, cases, lambda sentence: print(sentence, file=sys.stderr))
    return [cell for cell in cells if cell.found.party == CLIENT and cell.found.score]


def terms(cut: str) -> Terms:
    return Terms(
        topology="vanilla",
        schedule="alternating",
        model=ModelTerms(cut=(cut,)),
        input=InputTerms(shape=(1, 28, 28)),
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=Method(name="Adam", options={"lr": 1e-3}),
            batch_size=BATCH,
            rounds=ROUNDS,
        ),
        parties={CLIENT: PartyTerms(role="client"), "server": PartyTerms(role="server")},
    )


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a line for each defence, the attacks' scores beside what guessing gives."""
    attacks = list(dict.fromkeys(cell.found.attack for cell in cells))
    told = {(cell.case, cell.found.attack): cell for cell in cells}
    cases = list(dict.fromkeys(cell.case for cell in cells))
    first = [told[cases[0], attack].found.score for attack in attacks]
    guesses = [f"{score.chance:.3f} {score.unit}" for score in first if score]
    lines = [
        f"| defence | accuracy | {' | '.join(attacks)} | MB | s |",
        "|---|---|" + "---|" * len(attacks) + "---|---|",
        f"| guessing | | {' | '.join(guesses)} | | |",
    ]
    for case in cases:
        cells_of = [told[case, attack] for attack in attacks]
        scores = [score for cell in cells_of if (score := cell.found.score)]
        values = " | ".join(f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" for score in scores)
        cost = f"{cells_of[0].nbytes / 1e6:.1f} | {cells_of[0].seconds:.1f}"
        lines.append(f"| `{case.defence}` | {cells_of[0].accuracy:.3f} | {values} | {cost} |")
    return "\n".join(lines)


def as_data(cell: Cell) -> dict[str, object]:
    score = cell.found.score
    told: dict[str, object] = {"defence": cell.case.defence, "attack": cell.found.attack, "accuracy": cell.accuracy}
    told |= {"bytes": cell.nbytes, "seconds": cell.seconds, "reason": cell.found.reason}
    names = ("unit", "value", "low", "high", "chance", "rows")
    return told | ({name: getattr(score, name) for name in names} if score else {})


if __name__ == "__main__":
    main()
