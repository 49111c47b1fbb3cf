"""Advice as a picture: over every cut, steps a second, bytes that cross, and who computes how much."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cutlayer.errors import PlanError
from cutlayer.studies.advisor import Advice
from cutlayer.studies.survey import Place, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES_MOST = 60
"""Of more cuts not every name is written."""


def draw(survey: Survey, advice: Advice, path: Path, title: str) -> bool:
    """Write the picture; False if matplotlib is not there. Raises `PlanError` if the file cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    places = survey.places
    figure = Figure(figsize=(min(5 + 0.35 * len(places), 24), 8.5), dpi=110, layout="constrained")
    speed, traffic, work = figure.subplots(3, 1, sharex=True)
    _speed(speed, places, advice)
    _traffic(traffic, places)
    _work(work, places)
    step = -(-len(places) // NAMES_MOST)
    names = [_short(place.layer) for place in places]
    work.set_xticks(range(0, len(places), step), names[::step], rotation=60, ha="right", fontsize=8)
    work.set_xlabel("cut after")
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be drawn ({error}): name a file that ends in .png") from error
    return True


def _speed(axes: "Axes", places: Sequence[Place], advice: Advice) -> None:
    """A line for each codec, at its best number of micro-batches."""
    for codec in dict.fromkeys(choice.codec for choice in advice.choices):
        best = [
            max((c.steps_per_s for c in advice.choices if c.layer == place.layer and c.codec == codec), default=None)
            for place in places
        ]
        dots = [(at, value) for at, value in enumerate(best) if value is not None]
        axes.plot(*zip(*dots, strict=True), "o-", markersize=4, linewidth=1, label=codec)
    names = [place.layer for place in places]
    axes.plot([names.index(advice.best.layer)], [advice.best.steps_per_s], "*", color="black", markersize=12)
    other = advice.federated
    axes.axhline(other.steps_per_s, color="0.4", linestyle="--", linewidth=1)
    axes.text(0, other.steps_per_s, f"federated, {other.local_steps} local steps", fontsize=8, va="bottom")
    axes.set(ylabel="steps/s, predicted", yscale="log")
    axes.legend(fontsize=8, frameon=False, title="codec, at its best M", title_fontsize=8)


def _traffic(axes: "Axes", places: Sequence[Place]) -> None:
    at = range(len(places))
    axes.bar([x - 0.2 for x in at], [place.bytes_forward for place in places], 0.4, label="forward")
    axes.bar([x + 0.2 for x in at], [place.bytes_back for place in places], 0.4, label="back")
    axes.set(ylabel="bytes a row, raw", yscale="log")
    axes.legend(fontsize=8, frameon=False)


def _work(axes: "Axes", places: Sequence[Place]) -> None:
    """Operations of client and server, one above the other; nothing where they could not be counted."""
    client, server = ([_both(place, of) for place in places] for of in ("client", "server"))
    axes.bar(range(len(places)), client, 0.8, label="client")
    axes.bar(range(len(places)), server, 0.8, bottom=client, label="server")
    axes.set_ylabel("MFLOP a row,\nwith backward")
    axes.legend(fontsize=8, frameon=False)


def _both(place: Place, of: str) -> float:
    flops = place.client_flops if of == "client" else place.server_flops
    return 1e-6 * flops.both if flops else 0.0


def _short(name: str, most: int = 24) -> str:
    """A name as matplotlib writes it, the end of a long one: no formula."""
    return (name if len(name) <= most else f"…{name[1 - most :]}").replace("$", r"\$")
