"""`cutlayer plan` and `cutlayer accept`: what a plan says, what would cross, whether this party agrees."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cutlayer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cutlayer.plan.plan import Plan
    from cutlayer.plan.terms import Training

app = typer.Typer(help="Plans: check, weights.", no_args_is_help=True)

PlanPath = Annotated[Path, typer.Argument(help="The plan, with its model and weights beside it.")]


@app.command()
def check(plan: PlanPath = Path("plan.toml")) -> None:
    """Show what a plan means, or all its faults: what crosses, in which shape, how many bytes a row."""
    from cutlayer.party.agreement import read_agreement

    show(read_agreement(plan).plan)


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


def show(plan: "Plan", console: Console | None = None) -> None:
    """Print a plan's segments, its cuts, and who is who."""
    console = console or Console()
    terms = plan.terms
    console.print(f"[bold]{terms.name}[/bold]: {terms.topology}, {terms.schedule}, {_rounds(terms.training)}")
    console.print(_segments(plan))
    console.print(_edges(plan))
    for source in plan.topology.sources:
        leaves = any(edge.source == source.name for edge in plan.topology.cuts())
        at = source.role if source.role in terms.parties else f"the {source.role}"
        where = f"[red]leave {at}[/red]" if leaves else f"stay at {at}"
        console.print(f"{source.kind}{'' if at.startswith('the ') else f' ({source.name})'}: {where}")
    for sentence in (*shared_rows(plan), *movements(plan)):
        console.print(sentence, soft_wrap=True)
    unpinned = [name for name in terms.parties if name not in terms.pins]
    if unpinned:
        console.print(f"keys not pinned (the authority vouches for them): {', '.join(unpinned)}")
    console.print(f"digest {plan.digest}")


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


def _segments(plan: "Plan") -> Table:
    table = Table("segment", "at", "parties", "parameters", title="Segments", title_justify="left")
    for segment in plan.topology.segments:
        parties = ", ".join(plan.parties_of(segment.role))
        parameters = plan.contents.segments[segment.name].parameters
        table.add_row(segment.name + (" + loss" if segment.loss else ""), segment.role, parties, f"{parameters:,}")
    return table


def _edges(plan: "Plan") -> Table:
    table = Table(title="What crosses, per row", title_justify="left")
    for name in ("edge", "from", "to", "carries", "shape", "bytes forward", "bytes back"):
        table.add_column(name, justify="right" if name.startswith("bytes") else "left", overflow="fold")
    for edge in plan.topology.cuts():
        specs = plan.contents.edges[edge.name]
        kind = plan.topology.source_kind(edge)
        forward = sum(spec.for_rows(1).nbytes for spec in specs)
        back = 0 if kind else sum(spec.for_rows(1).nbytes for spec in specs if spec.differentiable)
        carries = f"[red]{kind}[/red]" if kind else "activation, gradient" if back else "activation"
        carries += f", each {edge.every}. batch" * (edge.every > 1)
        ends = plan.topology.role_of(edge.source), plan.topology.role_of(edge.target)
        table.add_row(edge.name, *ends, carries, ", ".join(map(str, specs)), f"{forward:,}", f"{back:,}")
    return table
