"""`cutlayer align`: find the rows that all parties hold, in one order, and show each other none of the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cutlayer.cli.running import accepted
from cutlayer.errors import DataError, PlanError
from cutlayer.observe.facts import Fact, Noticed

if TYPE_CHECKING:
    from cutlayer.data.ids import Ids
    from cutlayer.party.align import Alignment
    from cutlayer.party.alignment.star import Circle
    from cutlayer.party.run import Network
    from cutlayer.plan.terms import Terms

ROLES = ("client", "labels")
"""Parties that have a table unless said otherwise."""


def align(  # noqa: PLR0913 (each option is one line of what all agree on, or of what is the party's own)
    plan: Annotated[Path, typer.Argument(help="The plan, accepted by all.")] = Path("plan.toml"),
    *,
    party: Annotated[str, typer.Option("--as", help="Which party of the plan this is.")],
    data: Annotated[Path | None, typer.Option(help="The party's table: .csv, .tsv or .parquet.")] = None,
    id_column: Annotated[str, typer.Option("--id", help="The table's column of ids.")] = "id",
    id_type: Annotated[Literal["auto", "int", "text"], typer.Option(help="What ids are, the same at all.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Where to write id and row; by default aligned-NAME.parquet.")
    ] = None,
    more: Annotated[list[str] | None, typer.Option("--with", help="Another party that has a table. Repeat it.")] = None,
    at_least: Annotated[int, typer.Option(min=0, help="Rows of --labels that so many others hold; 0: of all.")] = 0,
    labels: Annotated[str, typer.Option(help="With --at-least: the party that holds the labels.")] = "",
    comparer: Annotated[str, typer.Option(help="The party that compares, and sees how many rows overlap.")] = "",
    keys: Annotated[Path | None, typer.Option(help="The party's folder of keys; by default beside the plan.")] = None,
    listen: Annotated[str, typer.Option(help="Conductor: HOST:PORT to listen on, instead of the plan's.")] = "",
    connect: Annotated[str, typer.Option(help="Others: HOST:PORT to dial, instead of the plan's.")] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure-plaintext-on-loopback", help="NO encryption, NO identities; loopback only.")
    ] = False,
) -> None:
    """Find the rows that all parties hold, in the same order. Parties may start in any order."""
    from cutlayer.data.ids import read_ids
    from cutlayer.party.align import align as align_party
    from cutlayer.party.alignment.star import circle

    agreed = accepted(plan, party).plan
    holders = tuple(name for name, each in agreed.terms.parties.items() if each.role in ROLES)
    around = circle(agreed, (*holders, *(more or ())), labels=labels, at_least=at_least, comparer=comparer)
    target = out or Path(f"aligned-{party}.parquet")
    ids = None
    if data is not None:
        _check_target(target)
        ids = read_ids(data, id_column, id_type)
    folder = keys or plan.parent / "keys"
    network = _network(folder, party, agreed.terms, around, listen=listen, connect=connect, insecure=insecure)
    try:
        with _shown(party) as (observer, progress):
            alignment = align_party(agreed, party, around, ids, network, observer=observer, progress=progress)
    except KeyboardInterrupt:
        typer.echo(f"cutlayer: {party} was stopped by hand", err=True)
        raise typer.Exit(130) from None
    if ids is not None:
        alignment.write(target, ids)
    _print_summary(alignment, ids, target)


def _check_target(path: Path) -> None:
    """Better known before an hour's work than after it."""
    if path.exists():
        raise DataError(f"{path} is there already: move it away, or name another with --out.")
    if not path.resolve().parent.is_dir():
        raise DataError(f"there is no folder {path.resolve().parent} to write {path.name} to: make it.")


def _network(
    folder: Path, party: str, terms: "Terms", around: "Circle", *, listen: str, connect: str, insecure: bool
) -> "Network":
    from cutlayer.keys.certificates import load_credentials
    from cutlayer.keys.pairs import PublicKeys
    from cutlayer.keys.sealing import load_sealer
    from cutlayer.party.run import Network, address_of

    credentials = None if insecure else load_credentials(folder, party)
    for warning in credentials.warnings if credentials else ():
        typer.echo(f"cutlayer: warning: {warning}", err=True)
    pinned = {
        name: PublicKeys(signing=each.signing_key, sealing=each.sealing_key) for name, each in terms.parties.items()
    }
    missing = [name for name in (party, *around.forwarded(party)) if not pinned[name].sealing]
    sealed = bool(around.forwarded(party))
    if sealed and missing:
        raise PlanError(
            f"what parties say to each other travels sealed by {around.conductor}, but the plan pins no signing and "
            f"sealing key for {', '.join(missing)}: `cutlayer keys pin`, and all accept the plan again"
        )
    return Network(
        credentials=credentials,
        seals=load_sealer(folder, party, pinned) if sealed else None,
        listen=address_of(listen, party) if listen else None,
        connect=address_of(connect, party) if connect else None,
        insecure_plaintext_on_loopback=insecure,
    )


# ---------------------------------------------------------------------- what is shown


@contextmanager
def _shown(party: str) -> Iterator[tuple[Callable[[Fact], None], Callable[[int, int], None]]]:
    """What is noticed, in lines, and a bar of the ids masked so far."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{party} masks ids", total=None)

        def observer(fact: Fact) -> None:
            if isinstance(fact, Noticed):
                console.print(fact.sentence, markup=False, highlight=False, soft_wrap=True)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield observer, progress


def _print_summary(alignment: "Alignment", ids: "Ids | None", target: Path) -> None:
    party, terms = alignment.party, alignment.circle.terms
    others = ", ".join(f"{name} {size:,}" for name, size in sorted(alignment.sizes.items()) if name != party)
    if alignment.rows is None or ids is None:
        print(f"{party}: the alignment is done in {alignment.seconds:.1f} s" + (f"; rows: {others}" if others else ""))
        return
    rows = alignment.rows
    print(f"{party}: {len(ids):,} rows of its own; others' rows: {others}")
    which = f"that {terms.labels} and at least {terms.at_least} others hold" if terms.at_least else "that all hold"
    print(f"{party}: {len(rows):,} common rows, {which}, in {alignment.seconds:.1f} s; written to {target}")
    if lacking := int((rows < 0).sum()):
        print(f"{party}: {lacking:,} of them it lacks: row -1; training needs rows that all hold")
