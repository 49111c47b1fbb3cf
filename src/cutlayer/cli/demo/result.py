"""What the demo shows at the end: one table, the crossing sheet, and the same as JSON."""

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
from cutlayer.cli.demo.hospitals import Ward
from cutlayer.cli.demo.project import HOSPITALS, LAB
from cutlayer.observe import sheet
from cutlayer.party.report import versions

KINDS = ("alone", "together", "pooled")


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One hospital's line of the table, or that of all hospitals."""

    train: int
    held_out: int
    malignant: int
    """How many of the rows, of both kinds."""
    accuracy: Mapping[str, float]
    """On the held-out rows, by kind of training."""
    bytes: Mapping[str, int]
    """`sent` and `received`, as measured on the channel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A finished demo."""

    plan: Mapping[str, str]
    """Its digest, topology and schedule."""
    hospitals: Mapping[str, Score]
    sheet: sheet.Sheet
    seconds: Mapping[str, float]

    @property
    def all(self) -> Score:
        """Sums over the hospitals; accuracies over all held-out rows."""
        scores = self.hospitals.values()
        held_out = sum(score.held_out for score in scores)
        return Score(
            train=sum(score.train for score in scores),
            held_out=held_out,
            malignant=sum(score.malignant for score in scores),
            accuracy={kind: sum(s.accuracy[kind] * s.held_out for s in scores) / held_out for kind in KINDS},
            bytes={way: sum(score.bytes[way] for score in scores) for way in ("sent", "received")},
        )

    def as_data(self) -> dict[str, Any]:
        """Everything shown, ready for JSON."""
        return {
            **self.plan,
            "hospitals": {name: asdict(score) for name, score in self.hospitals.items()},
            "all": asdict(self.all),
            **self.sheet.as_data(),
            "seconds": dict(self.seconds),
            "versions": versions(),
        }


def gather(
    root: Path, wards: Mapping[str, Ward], uncut: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float]
) -> Result:
    """The result, from the reports in the parties' folders and the uncut models' accuracies."""
    reports = {name: json.loads((root / name / REPORT).read_text()) for name in (LAB, *HOSPITALS)}
    together = {name: reports[name]["metrics"][name]["accuracy"] for name in HOSPITALS}
    accuracies = {**uncut, "together": together}
    return Result(
        plan={key: reports[LAB][key] for key in ("plan", "topology", "schedule")},
        hospitals={
            name: Score(
                train=len(ward.train),
                held_out=len(ward.held_out),
                malignant=ward.malignant,
                accuracy={kind: accuracies[kind][name] for kind in KINDS},
                bytes=reports[name]["bytes"],
            )
            for name, ward in wards.items()
        },
        sheet=sheet.from_reports({name: report["crossings"] for name, report in reports.items()}),
        seconds=seconds,
    )


def write(result: Result, path: Path) -> None:
    """Everything shown, as JSON."""
    path.write_text(json.dumps(result.as_data(), indent=2) + "\n")


def show(result: Result, console: Console) -> None:
    """Print the table and the crossing sheet."""
    crossed = result.sheet
    console.print("\n[bold]Accuracy[/bold] on held-out rows, and bytes on the channel\n")
    console.print(_table(result))
    _note(console, "rows: for training + held out. alone, together, pooled: trained on its own rows,")
    _note(console, "through the cut, as one uncut model on all rows; else alike.")
    console.print("\n[bold]What crossed[/bold], counted on the channels, training and evaluation\n")
    console.print(sheet.table(crossed, console.width))
    colour = "red" if crossed.rows or crossed.labels else "green"
    console.print(f"\nRaw data that left a hospital: [bold {colour}]{crossed.verdict}[/]")
    _note(console, "Each counts as often as it crossed. Activations and gradients are no raw data,")
    _note(console, "yet can betray some of it.")
    _note(console, f"Took {result.seconds['total']:.1f} s, {result.seconds['training']:.1f} s of it training.")


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim")


def _table(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("hospital", no_wrap=True)
    for name in ("rows", "malignant", *KINDS, "up", "down"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, score in result.hospitals.items():
        table.add_row(name, *_cells(score))
    table.add_section()
    table.add_row("all", *_cells(result.all), style="bold")
    return table


def _cells(score: Score) -> list[str]:
    return [
        f"{score.train} + {score.held_out}",
        f"{score.malignant / (score.train + score.held_out):.0%}",
        *(f"{score.accuracy[kind]:.3f}" for kind in KINDS),
        decimal(score.bytes["sent"]),
        decimal(score.bytes["received"]),
    ]
