"""What the demo shows at the end: accuracies, what crossed, how far from the pooled weights; and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cutlayer.cli.demo.crew import REPORT
from cutlayer.cli.demo.hospitals import HOSPITALS, Ward
from cutlayer.cli.demo.project import LAB, PARTIES
from cutlayer.cli.demo.sets import chosen
from cutlayer.cli.demo.uncut import Uncut
from cutlayer.cli.demo.weights import Difference, difference
from cutlayer.observe import sheet
from cutlayer.party.report import versions

KINDS = ("alone", "together", "pooled")


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One hospital's line of the table, or that of all hospitals."""

    train: int
    held_out: int
    counted: int
    """How many of the rows, of both kinds, are of the classes that `Result.counted` names."""
    accuracy: Mapping[str, float]
    """On the held-out rows, by kind of training."""
    bytes: Mapping[str, int]
    """`sent` and `received`, as measured on the channel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finished demo."""

    plan: Mapping[str, str]
    """Its digest, topology and schedule, and what the rows are: `data`, and which of them are `counted`."""
    hospitals: Mapping[str, Score]
    sheet: sheet.Sheet
    difference: Difference
    """Between the weights trained through the cut, at any hospital, and the pooled model's."""
    seconds: Mapping[str, float]

    @property
    def all(self) -> Score:
        """Sums over the hospitals; accuracies over all held-out rows."""
        scores = self.hospitals.values()
        held_out = sum(score.held_out for score in scores)
        return Score(
            train=sum(score.train for score in scores),
            held_out=held_out,
            counted=sum(score.counted for score in scores),
            accuracy={kind: sum(s.accuracy[kind] * s.held_out for s in scores) / held_out for kind in KINDS},
            bytes={way: sum(score.bytes[way] for score in scores) for way in ("sent", "received")},
        )

    def as_data(self) -> dict[str, Any]:
        """Everything shown, ready for JSON."""
        return {
            **self.plan,
            "hospitals": {name: asdict(score) for name, score in self.hospitals.items()},
            "all": asdict(self.all),
            "difference": asdict(self.difference) | {"rounding": self.difference.rounding},
            **self.sheet.as_data(),
            "seconds": dict(self.seconds),
            "versions": versions(),
        }


def gather(
    root: Path, data: str, wards: Mapping[str, Ward], uncut: Uncut, seconds: Mapping[str, float]
) -> Result:  # fmt: skip
    """The result, from the reports and weights in the parties' folders and the uncut models."""
    reports = {name: json.loads((root / name / REPORT).read_text()) for name in PARTIES}
    weights = {name: root / name / report["saved"] for name, report in reports.items()}
    together = {name: reports[name]["metrics"][name]["accuracy"] for name in HOSPITALS}
    accuracies = {**uncut.accuracies, "together": together}
    counted, classes = chosen(data).counted
    return Result(
        plan={key: reports[LAB][key] for key in ("plan", "topology", "schedule")} | {"data": data, "counted": counted},
        hospitals={
            name: Score(
                train=len(ward.train),
                held_out=len(ward.held_out),
                counted=ward.rows_of(classes),
                accuracy={kind: accuracies[kind][name] for kind in KINDS},
                bytes=reports[name]["bytes"],
            )
            for name, ward in wards.items()
        },
        sheet=sheet.from_reports(reports),
        difference=difference(uncut.pooled, weights[LAB], [weights[name] for name in HOSPITALS], uncut.steps),
        seconds=seconds,
    )


def write(result: Result, path: Path) -> None:
    """Everything shown, as JSON."""
    path.write_text(json.dumps(result.as_data(), indent=2) + "\n")


def show(result: Result, console: Console) -> None:
    """Print the table, the crossing sheet, and how far the weights are from the pooled model's."""
    console.print("\n[bold]Accuracy[/bold] on held-out rows, and bytes on the channel\n")
    console.print(_table(result))
    _note(console, "rows: for training + held out. alone: trained on its own rows. together: through")
    _note(console, "the cut. pooled: one uncut model on the same batches in the same order.")
    console.print("\n[bold]What crossed[/bold], counted on the channels, training and evaluation\n")
    console.print(sheet.table(result.sheet, console.width))
    if result.sheet.moves:
        console.print()
        console.print(sheet.moves_table(result.sheet))
        _note(console, f"Sealed: {LAB} forwards what only the receiver can open.")
    colour = "red" if result.sheet.rows or result.sheet.labels else "green"
    console.print(f"\nRaw data that left a hospital: [bold {colour}]{result.sheet.verdict}[/]")
    _note(console, "Each counts as often as it crossed. Activations and gradients are no raw data,")
    _note(console, "yet can betray some of it.")
    colour = "green" if result.difference.rounding else "red"
    console.print(f"\nLargest difference from the pooled model's weights: [bold {colour}]{result.difference}[/]")
    steps = result.difference.steps
    _note(console, f"After {steps} steps on the same batches; from the files that the processes wrote.")
    _note(console, f"Took {result.seconds['total']:.1f} s, {result.seconds['training']:.1f} s of it training.")


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim")


def _table(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("hospital", no_wrap=True)
    for name in ("rows", result.plan["counted"], *KINDS, "up", "down"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, score in result.hospitals.items():
        table.add_row(name, *_cells(score))
    table.add_section()
    table.add_row("all", *_cells(result.all), style="bold")
    return table


def _cells(score: Score) -> list[str]:
    return [
        f"{score.train} + {score.held_out}",
        f"{score.counted / (score.train + score.held_out):.0%}",
        *(f"{score.accuracy[kind]:.3f}" for kind in KINDS),
        decimal(score.bytes["sent"]),
        decimal(score.bytes["received"]),
    ]
