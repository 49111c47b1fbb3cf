"""`cutlayer attack`: what a curious peer could learn from a run of one's own, measured."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape

from cutlayer.cli.running import PlanPath, all_rows, named, party_file, set_threads
from cutlayer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cutlayer.attack.attack import Attack
    from cutlayer.attack.hijack import Insider
    from cutlayer.party.agreement import Agreement
    from cutlayer.studies.exposing import Found
    from cutlayer.studies.matrix import Cell

QUICK = "label_leak,spectrum,clusters,completion,decoder"


def attack(  # noqa: PLR0913 (each option is one word of the question)
    plan: PlanPath = Path("plan.toml"),
    *,
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=rows.csv, NAME=rows.npz or NAME=package.module:factory.")
    ] = None,
    recording: Annotated[
        list[Path] | None, typer.Option(help="Attack what `cutlayer run --record` kept, instead of a new run.")
    ] = None,
    attacks: Annotated[str, typer.Option(help="Which, with commas; `all` for all of them.")] = QUICK,
    matrix: Annotated[bool, typer.Option("--matrix", help="Also other --defences and --cuts.")] = False,
    defences: Annotated[str, typer.Option(help="With --matrix: none,nopeek(alpha=0.5),gaussian(clip=1,sigma=1).")] = "",
    cuts: Annotated[str, typer.Option(help="With --matrix: layers, with commas; by default the plan's.")] = "",
    seed: Annotated[int, typer.Option(help="Of the attacks' own random choices.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads for torch; 0 leaves its default.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw leakage against accuracy: FILE.png.")] = None,
    shown: Annotated[Path | None, typer.Option(help="A folder for pictures of what was rebuilt, if rows are.")] = None,
) -> None:
    """Attack a run of your own, and say what a peer could learn: each score beside what guessing gives.

    All parties of the plan are simulated in this process, on the rows that you name; nobody else's are touched.
    """
    from cutlayer.party.agreement import read_agreement
    from cutlayer.plan.methods import words_of
    from cutlayer.studies.matrix import NONE, PLANNED, Case, Question
    from cutlayer.studies.matrix import matrix as cells_of

    if (defences or cuts) and not matrix:
        raise PlanError("--defences and --cuts are for --matrix: add it, or leave them out")
    agreement, (on_traffic, insiders) = read_agreement(plan), _attacks(attacks)
    terms = agreement.plan.terms
    if recording:
        print_found([*_recorded(agreement, recording, on_traffic, seed)], None)
        return
    given = named(data or [])
    files = {name: party_file(plan, name, None, {"data": given.get(name, "")}) for name in agreement.plan.row_owners}
    set_threads(replace(next(iter(files.values())), threads=threads))
    compared = words_of(defences) or ([PLANNED, NONE] if terms.defence else [NONE])
    cases = [
        Case(cut=(cut,) if cut else terms.model.cut, defence=defence)
        for cut in (words_of(cuts) or [""])
        for defence in compared
    ]
    question = Question(
        terms=terms,
        model=agreement.model,
        data=all_rows({name: (file, file.data) for name, file in files.items()}, plan),
        on_traffic=on_traffic,
        insiders=insiders,
        seed=seed,
    )
    with _progress() as progress:
        cells = [*cells_of(question, cases, progress)]
    for case in cases:
        mine = [cell for cell in cells if cell.case == case]
        print_found([cell.found for cell in mine], mine[0] if mine else None)
    _write(cells, json_file, picture, shown)


def _attacks(text: str) -> "tuple[list[Attack], list[Insider]]":
    """The attacks that are named. Raises `PlanError`."""
    from cutlayer.attack.registry import METHODS, build
    from cutlayer.plan.methods import method_from, words_of

    words = list(METHODS) if text == "all" else words_of(text)
    return build([method_from(word) for word in words])


def _recorded(
    agreement: "Agreement", paths: "Sequence[Path]", attacks: "Sequence[Attack]", seed: int
) -> "Iterator[Found]":
    """Attacks on what runs have kept: by who knows the plan's model, and no weights of the party's."""
    from cutlayer.attack.traffic import Traffic
    from cutlayer.studies.exposing import attacked, knowledge_of

    plan = agreement.plan
    for path in paths:
        party, _, edge = path.stem.partition("-on-")
        if party not in plan.terms.parties:
            raise PlanError(f"{path} is no recording of a party of this plan: its name begins with the party's")
        owner = party if party in plan.owners else plan.owners[0]
        knowledge = replace(knowledge_of(plan, agreement.parts_of(owner), party, None, seed), known=None)
        yield from attacked({(party, edge): Traffic.load(path)}, attacks, lambda _: knowledge, seed)  # noqa: B023 (used at once)


@contextmanager
def _progress() -> "Iterator[Callable[[str], None]]":
    """What is under way, on standard error where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda sentence: status.update(escape(sentence)) if console.is_terminal else None


# ---------------------------------------------------------------------- what is shown


def print_found(found: "Sequence[Found]", cell: "Cell | None") -> None:
    """A table of scores: each attack beside what guessing gives, what leaks in red."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "Attacks on recordings"
    if cell is not None:
        learned = "" if cell.accuracy is None else f"; accuracy {cell.accuracy:.2%}"
        title = f"cut {', '.join(cell.case.cut)}, defence {cell.case.defence}{learned}; {cell.nbytes:,} bytes"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("rows of", "edge", "attack", "measure"):
        table.add_column(name, overflow="fold")
    for name in ("score (95%)", "guessing"):
        table.add_column(name, justify="right")
    reasons = []
    for each in found:
        if each.score is None:
            reasons.append(f"{each.attack} on {each.edge} of {each.party} was not tried: {each.reason}")
            continue
        score = each.score
        told = f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g})"
        style = "bold red" if score.leaks else None
        words = (each.party, each.edge, each.attack, score.unit)
        table.add_row(*map(escape, words), told, f"{score.chance:.3g}", style=style)
    console = Console()
    console.print(table)
    for reason in reasons:
        console.print(escape(reason), style="dim", soft_wrap=True, highlight=False)


def _write(cells: "Sequence[Cell]", json_file: Path | None, picture: Path | None, shown: Path | None) -> None:
    from cutlayer.attack.picture import grid
    from cutlayer.studies.leakage import draw

    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode([_as_data(cell) for cell in cells])) + b"\n")
    if picture is not None:
        draw(cells, picture)
    if shown is None:
        return
    shown.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        score = cell.found.score
        if score is not None and score.shown is not None:
            low, high = float(score.shown[0].min()), float(score.shown[0].max())
            title = f"{cell.found.attack}, cut {', '.join(cell.case.cut)}, {cell.case.defence}"
            grid(score.shown, shown / f"{number:02}-{score.attack.partition('(')[0]}.png", title, pixels=(low, high))


def _as_data(cell: "Cell") -> dict[str, Any]:
    score = cell.found.score
    told: dict[str, Any] = {
        "cut": cell.case.cut,
        "defence": cell.case.defence,
        "attack": cell.found.attack,
        "party": cell.found.party,
    }
    told |= {"edge": cell.found.edge, "accuracy": cell.accuracy, "bytes": cell.nbytes, "seconds": cell.seconds}
    if score is None:
        return told | {"reason": cell.found.reason}
    names = ("unit", "value", "low", "high", "chance", "better", "rows", "leaks")
    return told | {name: getattr(score, name) for name in names}
