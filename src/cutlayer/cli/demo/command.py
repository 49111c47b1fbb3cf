"""The command: write the project, start the four parties, follow them, show what came of it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.errors import PlanError

if TYPE_CHECKING:
    from rich.console import Console

    from cutlayer.cli.demo.crew import Crew
    from cutlayer.cli.demo.result import Result
    from cutlayer.observe.progress import ProgressBars

INTERRUPTED = 130
"""The exit code after Ctrl-C."""
LISTENS = "lab listens on port "


def demo(
    data: Annotated[str, typer.Option(help="wisconsin: 30 measurements a row; digits: images, a small conv net.")] = (
        "wisconsin"
    ),
    topology: Annotated[str, typer.Option(help="u_shaped: labels stay; vanilla: they go to the lab.")] = "u_shaped",
    rounds: Annotated[int, typer.Option(min=1, help="Passes over each hospital's rows.")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that is shown into this file.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the project in this folder, to look into.")] = None,
) -> None:
    """Train one network between three hospitals and a lab: four processes, real mTLS, under a minute."""
    from rich.console import Console

    from cutlayer.cli.demo import interrupts

    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise PlanError(f"{json_file} cannot be written: there is no folder {json_file.parent}")
    console = Console(highlight=False)
    kind = f"[bold]{topology}[/bold], [bold]relay[/bold]"
    console.print(f"[bold]Three hospitals and a lab[/bold] train one network: {kind}, 4 processes, mTLS.")
    try:
        with interrupts.raised():
            result = _play(data, topology, rounds, keep, console)
    except KeyboardInterrupt:
        console.print("Stopped by hand: no process of the demo is left.")
        raise typer.Exit(INTERRUPTED) from None
    from cutlayer.cli.demo.result import show, write

    show(result, console)
    if json_file is not None:
        write(result, json_file)
        console.print(f"All of this as JSON: {json_file}", style="dim", soft_wrap=True)
    if keep is not None:
        console.print(f"The project, a folder for each party: {keep}", style="dim", soft_wrap=True)


def _play(data: str, topology: str, rounds: int, keep: Path | None, console: "Console") -> "Result":
    start = time.perf_counter()
    from cutlayer.cli.demo.crew import Crew
    from cutlayer.cli.demo.hospitals import HOSPITALS
    from cutlayer.cli.demo.project import LAB, deal_rows, workplace, write_project
    from cutlayer.cli.demo.result import gather
    from cutlayer.cli.demo.uncut import compare
    from cutlayer.observe.progress import ProgressBars

    with workplace(keep) as root:
        agreement = write_project(root, data, topology, rounds)
        console.print(f"plan {agreement.plan.digest[:12]}, keys and certificates made for this run only", style="dim")
        with Crew() as crew, ProgressBars(HOSPITALS) as bars:
            crew.start(LAB, root / LAB, "--listen", "127.0.0.1:0")
            wards = deal_rows(root, data)
            uncut = compare(agreement, root)  # while the lab is still importing torch
            training_s = _follow(crew, bars, root)
        seconds = {"total": time.perf_counter() - start, "training": training_s}
        return gather(root, data, wards, uncut, seconds)


def _follow(crew: "Crew", bars: "ProgressBars", root: Path) -> float:
    """Start the hospitals when the lab is there, and show what all four tell; returns seconds of training."""
    from cutlayer.cli.demo.hospitals import HOSPITALS
    from cutlayer.observe.facts import Noticed, Progressed

    begun = None
    for fact in crew.facts():
        bars(fact)
        if isinstance(fact, Noticed) and fact.sentence.startswith(LISTENS):
            address = f"127.0.0.1:{fact.sentence.removeprefix(LISTENS)}"
            for name in HOSPITALS:
                crew.start(name, root / name, "--connect", address)
        elif isinstance(fact, Progressed) and begun is None:
            begun = time.perf_counter()
    return time.perf_counter() - (begun or time.perf_counter())
