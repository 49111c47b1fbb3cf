"""Leakage against accuracy as a picture: a panel for each attack, a dot for each cut and defence."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cutlayer.errors import PlanError
from cutlayer.studies.matrix import Case, Cell, leak_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS, MARKS = 3, "os^Dv"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Write a PNG. Raises `PlanError` if matplotlib is not there or the file cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlanError("pictures need matplotlib: pip install 'cutlayer[plots]'") from error
    scored = [cell for cell in cells if cell.found.score is not None]
    if not scored:
        raise PlanError("no attack could be tried, so there is nothing to draw: choose others with --attacks")
    panels = list(dict.fromkeys((cell.found.attack, cell.found.party) for cell in scored))
    rows, columns = -(-len(panels) // ACROSS), min(ACROSS, len(panels))
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    cases = list(dict.fromkeys(cell.case for cell in scored))
    for place, (attack, party) in enumerate(panels):
        _panel(axes[place], [c for c in scored if (c.found.attack, c.found.party) == (attack, party)], cases)
        axes[place].set_title(f"{attack} on {party}", fontsize=9)
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=ACROSS, fontsize=8, frameon=False
    )
    figure.suptitle("What leaks (0: no more than guessing gives, 1: all) against accuracy", fontsize=11)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise PlanError(f"{path} cannot be drawn ({error}): name a file that ends in .png") from error


def _panel(axes: "Axes", cells: Sequence[Cell], cases: Sequence[Case]) -> None:
    """A dot for each case, with its interval; of the same colour and mark in all panels."""
    for cell in cells:
        score, number = cell.found.score, cases.index(cell.case)
        assert score is not None
        ends = [leak_of(replace(score, value=end)) for end in (score.low, score.high)]
        across = number if cell.accuracy is None else cell.accuracy
        colour, mark = f"C{number % 10}", MARKS[number // 10 % len(MARKS)]
        axes.plot([across, across], ends, "-", color=colour, linewidth=1)
        name = f"{', '.join(cell.case.cut)}: {cell.case.defence}".replace("$", r"\$")
        axes.plot([across], [leak_of(score)], mark, color=colour, markersize=6, alpha=0.8, label=name)
    axes.set(ylim=(-0.05, 1.05), xlabel="accuracy", ylabel="leakage")
    axes.margins(x=0.1)
