"""`cutlayer plan` and `cutlayer accept`: what a plan says, what would cross, whether this party agrees."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cutlayer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cutlayer.plan.plan import Plan
    from cutlayer.plan.terms import Training
    from cutlayer.studies.flops import Operations

app = typer.Typer(help="Plans: check, weights.", no_args_is_help=True)

PlanPath = Annotated[Path, typer.Argument(help="The plan, with its model and weights beside it.")]


@app.command()
def check(plan: PlanPath = Path("plan.toml")) -> None:
    """Show what a plan means, or all its faults: what crosses, in which shape, how many bytes a row."""
    from cutlayer.party.agreement import read_agreement
    from cutlayer.studies.flops import of_segments

    agreement = read_agreement(plan)
    show(agreement.plan, flops=of_segments(agreement))


@app.command()
def weights(plan: PlanPath = Path("plan.toml")) -> None:
    """Draw the initial weights with the plan's seed and write them beside the plan."""
    from cutlayer.party.agreement import write_weights

    print(f"{write_weights(plan)}  initial weights: they travel with the plan")


def accept(
    plan: PlanPath = Path("plan.toml"),
    digest: Annotated[str, typer.Option(help="Accept only a plan whose digest begins so.")] = "",
) -> None:
    """Record that you have read this plan, its model and its weights, and agree to run them."""
    from cutlayer.party import local
    from cutlayer.party.agreement import read_agreement

    agreed = read_agreement(plan).plan
    if not agreed.digest.startswith(digest.lower()):
        raise PlanError(f"{plan} has the digest {agreed.digest}, not {digest}: the parties hold different plans")
    local.accept(plan, agreed.digest)
    print(f"accepted {plan}: {agreed.digest}")
    print("The other parties must see the same digest.")


def show(
    plan: "Plan", console: Console | None = None, *, flops: "Mapping[str, Operations | None] | None" = None
) -> None:
    """Print a plan's segments, its cuts, and who is who; with the operations of each segment, if they are given."""
    console = console or Console()
    terms = plan.terms
    console.print(f"[bold]{terms.name}[/bold]: {terms.topology}, {terms.schedule}, {_rounds(terms.training)}")
    console.print(_segments(plan, flops or {}))
    console.print(_edges(plan))
    for source in plan.topology.sources:
        leaves = any(edge.source == source.name for edge in plan.topology.cuts())
        at = source.role if source.role in terms.parties else f"the {source.role}"
        where = f"[red]leave {at}[/red]" if leaves else f"stay at {at}"
        console.print(f"{source.kind}{'' if at.startswith('the ') else f' ({source.name})'}: {where}")
    for sentence in (*shared_rows(plan), *movements(plan)):
        console.print(sentence, soft_wrap=True)
    _show_exposure(plan, console)
    unpinned = [name for name in terms.parties if name not in terms.pins]
    if unpinned:
        console.print(f"keys not pinned (the authority vouches for them): {', '.join(unpinned)}")
    console.print(f"digest {plan.digest}")


def _show_exposure(plan: "Plan", console: Console) -> None:
    """What each peer could learn by each channel, and what protects it; what nothing bounds in red."""
    from rich import box
    from rich.markup import escape

    from cutlayer.studies.exposure import exposures, warnings, watches

    table = Table(title="Who could learn what", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("channel", "from → to", "tells", "protected by"):
        table.add_column(name, overflow="fold")
    for each in exposures(plan):
        style = "green" if each.bounded else "red"
        words = (each.channel, f"{each.sender} → {each.receiver}", each.tells)
        table.add_row(*map(escape, words), f"[{style}]{escape(each.protected_by)}[/{style}]")
    console.print(table)
    for budget in plan.terms.budget:
        told = f"ε = {budget.epsilon:g} at δ = {budget.delta:g}"
        console.print(f"{budget.party} stops before its {budget.channel} would tell more of a row than {told}")
    for sentence in watches(plan):
        console.print(escape(sentence), soft_wrap=True)
    for sentence in warnings(plan):
        console.print(f"[bold red]warning:[/bold red] {escape(sentence)}", soft_wrap=True)


def _rounds(training: "Training") -> str:
    """`3 rounds of 10 clients, 2 local epochs each`."""
    choice = training.clients_per_round
    clients = "all" if choice == "all" else f"{choice}" if isinstance(choice, int) else f"{choice:.0%} of the"
    local = f"{training.local_steps} steps" if training.local_steps else f"{training.local_epochs} local epoch(s)"
    return f"{training.rounds} rounds of {clients} clients, {local} each"


def shared_rows(plan: "Plan") -> "Iterator[str]":
    """Where parties have columns of the same rows, or no link to each other: who knows what, a sentence each."""
    if plan.schedule.together:
        lead, *others = plan.row_owners
        if others:
            yield (
                f"the order of rows: {lead} draws it and tells {', '.join(others)}; every activation bears a mark of "
                "its rows' ids that only these can make; rows that do not match end the run before a gradient is made"
            )
    pairs = sorted({tuple(sorted(pair)) for pair in plan.forwarded_pairs})
    for one, other in pairs:
        yield (
            f"{one} and {other} have no link: {plan.conductor} forwards what they seal to each other, unread; it "
            "learns how many bytes go when"
        )
    if dropout := plan.terms.training.party_dropout:
        yield f"each party's activation is left out of {dropout:.0%} of the steps: the model learns to do without it"


def movements(plan: "Plan") -> "Iterator[str]":
    """What leaves its owner between turns, who sees it, and how it travels: a sentence each."""
    from cutlayer.plan.check import needs_aggregator, sealing_parties

    terms, server, segments = plan.terms, plan.conductor, ", ".join(plan.client_segments)
    if plan.schedule.hands_over:
        yield (
            f"{segments}: handed on from client to client, weights and optimizer, sealed to the next one's key and "
            f"signed; {server} forwards it unread. Each client sees the weights as the one before left them"
        )
    if needs_aggregator(terms):
        what = "gradients are summed" if plan.schedule.joined else "weights are averaged"
        if terms.aggregator_sees_weights:
            yield (
                f"[red]{segments}: each client's {what} by {server}, which sees them next to that client's "
                "activations: who holds both can invert the activations into rows "
                "(aggregator_sees_weights = true)[/red]"
            )
        else:
            yield (
                f"{segments}: each client's {what} by {plan.aggregator}, sealed to its key and signed; {server} "
                f"forwards them unread, and {plan.aggregator} sees no activation"
            )
    if plan.straddling:
        yield (
            f"{', '.join(sorted(plan.straddling))}: at a client for some, at {server} for others, so {server} sends "
            f"its copies to {plan.aggregator}, too"
        )
    if plan.contents.personal:
        yield f"personal, never leaving their owner: {', '.join(plan.contents.personal)}"
    parties = terms.parties
    unsealed = [n for n in sealing_parties(terms) if not (parties[n].signing_key and parties[n].sealing_key)]
    if unsealed:
        yield f"[red]no signing and sealing keys pinned for {', '.join(unsealed)}: `cutlayer keys pin`[/red]"


def _segments(plan: "Plan", flops: "Mapping[str, Operations | None]") -> Table:
    from cutlayer.studies.flops import spelled

    table = Table("segment", "at", "parties", "parameters", title="Segments", title_justify="left")
    if flops:
        table.add_column("FLOPs a row: forward, with backward")
    for segment in plan.topology.segments:
        parties = ", ".join(plan.parties_of(segment.role))
        parameters = plan.contents.segments[segment.name].parameters
        row = [segment.name + (" + loss" if segment.loss else ""), segment.role, parties, f"{parameters:,}"]
        table.add_row(*row, *([spelled(flops[segment.name])] if flops else []))
    return table


def _rounded(count: float) -> str:
    return f"{count:,.0f}" if count == int(count) else f"{count:,.1f}"


def _edges(plan: "Plan") -> Table:
    from cutlayer.party.coding import bytes_a_row, codec_name
    from cutlayer.plan.terms import WAYS

    table = Table(title="What crosses, per row", title_justify="left")
    for name in ("edge", "from", "to", "carries", "shape", "bytes forward", "bytes back"):
        table.add_column(name, justify="right" if name.startswith("bytes") else "left", overflow="fold")
    for edge in plan.topology.cuts():
        specs = plan.contents.edges[edge.name]
        kind = plan.topology.source_kind(edge)
        forward = bytes_a_row(plan, edge.name, "forward")
        back = 0 if kind else bytes_a_row(plan, edge.name, "backward")
        carries = f"[red]{kind}[/red]" if kind else "activation, gradient" if back else "activation"
        carries += f", each {edge.every}. batch" * (edge.every > 1)
        ends = plan.topology.role_of(edge.source), plan.topology.role_of(edge.target)
        table.add_row(edge.name, *ends, carries, ", ".join(map(str, specs)), _rounded(forward), _rounded(back))
        if plan.coding(edge.name).coded:
            names = [codec_name(plan, edge.name, way) for way in WAYS]
            table.add_row("", "", "", "as " + " and ".join(dict.fromkeys(names)), "", "", "")
    return table
