"""What the demo shows at the end: one table, the crossing sheet, and the same as JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
class Result:
    """A finished demo. `accuracy` is by kind and hospital; `reports` are the four parties' own."""

    wards: Mapping[str, Ward]
    accuracy: Mapping[str, Mapping[str, float]]
    reports: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]

    @property
    def sheet(self) -> sheet.Sheet:
        return sheet.from_reports({name: report["crossings"] for name, report in self.reports.items()})

    def mean(self, kind: str) -> float:
        """Accuracy over the held-out rows of all hospitals."""
        rows = {name: len(ward.held_out) for name, ward in self.wards.items()}
        return sum(self.accuracy[kind][name] * rows[name] for name in rows) / sum(rows.values())

    def as_data(self) -> dict[str, Any]:
        """Everything shown, ready for JSON."""
        report = self.reports[LAB]
        return {
            "topology": report["topology"],
            "schedule": report["schedule"],
            "plan": report["plan"],
            "hospitals": {name: self._hospital(name) for name in self.wards},
            "all": {"accuracy": {kind: self.mean(kind) for kind in KINDS}},
            **self.sheet.as_data(),
            "seconds": dict(self.seconds),
            "versions": versions(),
        }

    def _hospital(self, name: str) -> dict[str, Any]:
        ward, report = self.wards[name], self.reports[name]
        return {
            "rows": {"train": len(ward.train), "held_out": len(ward.held_out)},
            "malignant": ward.malignant,
            "accuracy": {kind: self.accuracy[kind][name] for kind in KINDS},
            "bytes": report["bytes"],
        }


def gather(
    root: Path, wards: Mapping[str, Ward], uncut: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float]
) -> Result:
    """The result, from the parties' reports in their folders and the uncut models' accuracies."""
    reports = {name: json.loads((root / name / REPORT).read_text()) for name in (LAB, *HOSPITALS)}
    together = {name: reports[name]["metrics"][name]["accuracy"] for name in HOSPITALS}
    return Result(wards=wards, accuracy={**uncut, "together": together}, reports=reports, seconds=seconds)


def write(result: Result, path: Path) -> None:
    """Write everything shown as JSON."""
    path.write_text(json.dumps(result.as_data(), indent=2) + "\n")


def show(result: Result, console: Console) -> None:
    """Print the table and the crossing sheet."""
    console.print()
    console.print(_accuracies(result))
    console.print(
        "alone: trained on its own rows only; together: through the cut, no row leaves; pooled: one uncut model\n"
        "on all rows. Accuracy is on each hospital's held-out rows; bytes are whole frames on its channel.",
        style="dim",
    )
    console.print()
    console.print("[bold]What crossed[/bold], as counted on the channels")
    console.print(sheet.table(result.sheet))
    console.print(f"Raw data that left a hospital: [bold]{result.sheet.verdict}[/bold]")


def _accuracies(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("hospital", no_wrap=True)
    for name in ("rows", "malignant", *KINDS, "up", "down"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, ward in result.wards.items():
        accuracies = [f"{result.accuracy[kind][name]:.3f}" for kind in KINDS]
        size = result.reports[name]["bytes"]
        rows = f"{len(ward.train)} + {len(ward.held_out)}"
        table.add_row(
            name, rows, f"{ward.malignant:.0%}", *accuracies, decimal(size["sent"]), decimal(size["received"])
        )
    table.add_section()
    table.add_row("all", *_totals(result), style="bold")
    return table


def _totals(result: Result) -> list[str]:
    wards = result.wards.values()
    train, held_out = sum(len(ward.train) for ward in wards), sum(len(ward.held_out) for ward in wards)
    malignant = sum(ward.malignant * (len(ward.train) + len(ward.held_out)) for ward in wards) / (train + held_out)
    total: Callable[[str], int] = lambda way: sum(result.reports[name]["bytes"][way] for name in result.wards)  # noqa: E731
    return [
        f"{train} + {held_out}",
        f"{malignant:.0%}",
        *(f"{result.mean(kind):.3f}" for kind in KINDS),
        decimal(total("sent")),
        decimal(total("received")),
    ]
