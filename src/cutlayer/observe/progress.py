"""How far training is: a bar for each party that brings rows on a terminal, short plain lines elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cutlayer.observe.facts import Fact, Noticed, Paced, Progressed, Resumed, Scored

LINES_PER_OWNER = 4
"""Without a terminal: how often each owner's progress is told during a run."""
_TEXT_WIDTH = 58
"""Columns for all but the bar itself."""


@dataclass(slots=True)
class Track:
    """What is known of training on one owner's rows."""

    owner: str
    done: int = 0
    total: int = 0
    round: int = 0
    loss: float | None = None
    held_out: float | None = None
    """Accuracy on the held-out rows; their loss, where answers are neither right nor wrong."""
    told: int = 0
    """How many of `LINES_PER_OWNER` lines were printed."""

    @property
    def steps(self) -> str:
        """`33/130`."""
        return f"{self.done}/{self.total}" if self.total else ""

    @property
    def numbers(self) -> str:
        """`round 3  loss 0.123  held-out 0.956`, as far as known."""
        loss = [] if self.loss is None else [f"loss {self.loss:.3f}"]
        held_out = [] if self.held_out is None else [f"held-out {self.held_out:.3f}"]
        return "  ".join([f"round {self.round}", *loss, *held_out])

    def update(self, fact: Progressed | Scored) -> None:
        """Take in a fact. In a simulation both ends of a cut tell it: nothing here goes back or counts twice."""
        if isinstance(fact, Progressed):
            self.done, self.total, self.round = max(self.done, fact.done), fact.total, max(self.round, fact.round + 1)
        elif fact.purpose == "train":
            self.loss = _first(fact, "loss", self.loss)
        else:
            self.held_out = _first(fact, "accuracy", _first(fact, "loss", self.held_out))


def _first(fact: Scored, what: str, otherwise: float | None) -> float | None:
    """A turn's `loss` or `accuracy`; where there are several losses, the first one's."""
    found = (value for name, value in fact.metrics.items() if name.rpartition(".")[2] == what)
    return fact.metrics.get(what, next(found, otherwise))


class ProgressBars:
    """An observer and a context manager: shows `Progressed`, `Scored` and `Noticed` facts on standard error.

    Owners named at the start have their bar at once, in this order; others get one when their first fact comes.
    """

    def __init__(self, owners: Sequence[str] = (), console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars = _bars(self._console) if self._console.is_terminal else None
        self._tracks: dict[str, Track] = {}
        self._tasks: dict[str, TaskID] = {}
        for owner in owners:
            self._track(owner)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, Noticed):
            self.say(fact.sentence)
        elif isinstance(fact, Resumed):
            self._resumed(fact)
        elif isinstance(fact, Paced):
            tried = ", ".join(f"{parts}: {1000 * seconds:.3g}" for parts, seconds in fact.seconds.items())
            self.say(f"micro_batches = {fact.micro_batches} from now on" + (f" (ms a step, {tried})" if tried else ""))
        elif isinstance(fact, Progressed | Scored):
            track = self._track(fact.owner)
            track.update(fact)
            self._show(track)

    def say(self, sentence: str) -> None:
        """A line of its own, above the bars."""
        self._console.print(escape(sentence), style="dim", soft_wrap=True)

    def _resumed(self, fact: Resumed) -> None:
        for track in self._tracks.values():
            track.told = 0
        if fact.save >= 0:
            self.say(f"{fact.party} goes on from save {fact.save}")
        if fact.absent:
            self.say(f"without {', '.join(fact.absent)} from round {fact.round} on")
        if fact.returned:
            self.say(f"with {', '.join(fact.returned)} again from round {fact.round} on")

    def _track(self, owner: str) -> Track:
        if owner not in self._tracks:
            self._tracks[owner] = Track(owner)
            if self._bars is not None:
                self._tasks[owner] = self._bars.add_task(escape(owner), total=None, steps="", numbers="waiting")
        return self._tracks[owner]

    def _show(self, track: Track) -> None:
        if self._bars is not None:
            self._bars.update(
                self._tasks[track.owner],
                completed=track.done,
                total=track.total or None,
                steps=track.steps,
                numbers=track.numbers,
            )
        elif track.total and track.done * LINES_PER_OWNER >= (track.told + 1) * track.total:
            track.told = track.done * LINES_PER_OWNER // track.total
            line = f"{track.owner}  {track.steps} steps  {track.numbers}"
            self._console.print(escape(line), soft_wrap=True)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=max(8, min(40, console.width - _TEXT_WIDTH))),
        TextColumn("{task.fields[steps]}", justify="right"),
        TextColumn("[dim]{task.fields[numbers]}"),
        console=console,
    )
