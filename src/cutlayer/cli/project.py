"""`cutlayer init`: a small project that runs as it is."""

import csv
import random
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.errors import PlanError

HOSPITALS = {"hospital-a": (300, 0.6), "hospital-b": (150, 0.4), "hospital-c": (60, 0.25)}
"""Rows, and the part of them from people over 55: hospitals differ."""
COLUMNS = ("age", "bmi", "blood_pressure", "glucose", "smoker", "disease")


def init(folder: Annotated[Path, typer.Argument(help="An empty folder, or one to be made.")] = Path()) -> None:
    """Write a small project: model.py, plan.toml, initial weights, made-up rows, and how to run it."""
    from cutlayer.party.agreement import write_weights

    starter = files("cutlayer.cli") / "starter"
    party_file = (starter / "party.toml").read_text()
    texts = {name: (starter / name).read_text() for name in ("model.py", "plan.toml", "HOWTO.md")}
    texts |= {f"{name}.toml": party_file.replace("{name}", name) for name in HOSPITALS}
    if taken := [name for name in texts if (folder / name).exists()]:
        raise PlanError(f"{folder / taken[0]} is there already: choose an empty folder, `cutlayer init NAME`")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name, (rows, elderly) in HOSPITALS.items():
        _write_rows(folder / f"{name}.csv", rows, elderly, random.Random(name))  # noqa: S311 (made-up rows)
    write_weights(folder / "plan.toml")
    print(f"{folder}: model.py, plan.toml, initial weights and made-up rows; HOWTO.md says how to run them")


def _write_rows(path: Path, rows: int, elderly: float, dice: random.Random) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for _ in range(rows):
            age = dice.gauss(67, 8) if dice.random() < elderly else dice.gauss(42, 10)
            bmi, pressure, glucose = dice.gauss(26, 4), dice.gauss(125, 15), dice.gauss(100, 20)
            smoker = dice.random() < 0.3
            risk = (age - 55) / 10 + (bmi - 26) / 4 + (pressure - 125) / 15 + (glucose - 100) / 20 + 1.5 * smoker
            numbers = (round(value, 1) for value in (age, bmi, pressure, glucose))
            table.writerow([*numbers, int(smoker), int(risk + dice.gauss(0, 1) > 0.5)])
