"""`cutlayer audit`: are the logs of what crossed whole, their parties' own, and do they agree?"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from cutlayer.observe.compare import Pair
    from cutlayer.observe.trail import IsSigned, Trail

app = typer.Typer(help="Audit logs: verify.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Audit logs: what left each party and what came to it."""


@app.command()
def verify(
    logs: Annotated[list[Path], typer.Argument(help="Audit logs of one run: one party's, or several parties'.")],
    plan: Annotated[Path | None, typer.Option(help="The plan that pins the parties' signing keys.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A folder with NAME.pub of each party, where no plan does.")] = None,
) -> None:
    """Verify each log's chain and signatures, and that what came to a party is what the other says it sent."""
    from cutlayer.observe.compare import compare
    from cutlayer.observe.trail import read_trail

    trails = [read_trail(path, _is_signed(path, plan, keys)) for path in logs]
    pairs = compare(trails)
    console = Console()
    console.print(_trails(trails))
    if pairs:
        console.print(_pairs(pairs))
    each: list[Trail | Pair] = [*trails, *pairs]
    for notice in (notice for one in each for notice in one.notices):
        console.print(f"note: {escape(notice)}", soft_wrap=True, highlight=False)
    faults = [fault for one in each for fault in one.faults]
    for fault in faults:
        console.print(f"[red]fault[/red]: {escape(fault)}", soft_wrap=True, highlight=False)
    if faults:
        raise typer.Exit(1)
    console.print(_verdict(len(trails)))


def _is_signed(log: Path, plan: Path | None, folder: Path | None) -> "IsSigned | None":
    """How to verify a log's signatures; None if nobody says with which key. Raises `PlanError`, `CredentialError`."""
    from cutlayer.keys.signing import is_signed
    from cutlayer.observe.trail import party_of

    party = party_of(log)
    key = _key(party, plan, folder)
    return partial(is_signed, key) if key else None


def _key(party: str, plan: Path | None, folder: Path | None) -> str:
    from cutlayer.errors import PlanError
    from cutlayer.keys.pairs import read_public_keys

    if folder is not None:
        return read_public_keys(folder / f"{party}.pub", party).signing
    if plan is None:
        return ""
    from cutlayer.party.agreement import read_plan_terms

    terms = read_plan_terms(plan)
    if party not in terms.parties:
        raise PlanError(f"{party} is no party of {plan}, so no log of it can be verified: name the plan of its run")
    return terms.parties[party].signing_key


def _verdict(logs: int) -> str:
    return "the log is whole" if logs == 1 else "the logs are whole, and agree"


def _trails(trails: "Iterable[Trail]") -> Table:
    grid = _columns(("log", "party", "plan"), ("lines", "signed to", "sent", "came"))
    for trail in trails:
        counts = (trail.lines, trail.signed or "–", trail.count("sent"), trail.count("came"))
        grid.add_row(escape(trail.name), escape(trail.party), escape(trail.plan[:12]), *map(str, counts))
    return grid


def _pairs(pairs: "Iterable[Pair]") -> Table:
    grid = _columns(("run", "from → to"), ("sent", "came", "lost", "faults"))
    for pair in pairs:
        counts = (pair.sent, pair.came, pair.lost, len(pair.faults))
        grid.add_row(escape(pair.run[:8]), escape(f"{pair.sender} → {pair.receiver}"), *map(str, counts))
    return grid


def _columns(texts: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name in texts:
        grid.add_column(name, overflow="fold")
    for name in numbers:
        grid.add_column(name, justify="right", no_wrap=True)
    return grid
