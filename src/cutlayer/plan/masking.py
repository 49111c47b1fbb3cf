"""What must hold where what clients send is summed under masks. Faults are sentences."""

from collections.abc import Iterator

from cutlayer.plan.schedule import SCHEDULES
from cutlayer.plan.terms import Terms

FEWEST = 2
"""Fewer clients in a sum than this, and the sum is what one of them sent."""


def faults(terms: Terms, *, summed: bool) -> Iterator[str]:
    """`summed`: whether anything of the clients' is summed under the plan's schedule."""
    if not terms.secure_aggregation:
        return
    if not summed:
        yield f"secure_aggregation means nothing under {terms.schedule}: nothing of the clients' is summed there"
        return
    yield from _few(terms)
    if terms.quorum != "all":
        yield from _without_some(terms, terms.quorum)
    if terms.training.averaging is not None:
        yield (
            f"secure_aggregation with training.averaging = {terms.training.averaging.name!r}: that looks at each "
            "client's share, of which under masks only the sum is there; leave one of them out"
        )
    if terms.training.averaged_optimizer == "average":
        yield (
            'secure_aggregation with training.averaged_optimizer = "average": what optimizers keep is too small for '
            'the fixed point of masked sums; say "reset" or "keep"'
        )
    for name, party in terms.parties.items():
        if party.cut:
            yield (
                f"secure_aggregation with parties.{name}.cut: masks cancel only where all clients send the same "
                "layers; leave it out"
            )


def own_masks(terms: Terms) -> bool:
    """Whether clients add masks of their own to what they share, since a sum may be made again without one of them."""
    return terms.secure_aggregation and terms.quorum != "all"


def _without_some(terms: Terms, quorum: int) -> Iterator[str]:
    """Where a round may be done again without a client, one sum of it may be opened, and the round must end there."""
    where, choice = f"secure_aggregation with quorum = {quorum}", terms.training.clients_per_round
    if quorum < FEWEST or (isinstance(choice, float) and round(choice * quorum) < FEWEST):
        yield f"{where}: the sum of one client is what it sent; let at least {FEWEST} be enough, and in each round"
    if terms.saves.every_rounds != 1:
        yield (
            f"{where} and saves.every_rounds = {terms.saves.every_rounds}: a round whose sum was opened cannot be done "
            "again without a client, so each round needs its save; leave saves.every_rounds at 1"
        )
    if SCHEDULES[terms.schedule].joined and terms.training.local_steps != 1:
        yield (
            f"{where} under {terms.schedule}: once one step's sum was opened a round cannot be done again without a "
            'client; say training.local_steps = 1, or leave the quorum at "all"'
        )
    if "client" in SCHEDULES[terms.schedule].averaged and terms.training.averaged_optimizer == "keep":
        yield (
            f'{where} and training.averaged_optimizer = "keep": a client that comes back is handed the segments of '
            'another, and what its optimizer keeps with them; say "reset"'
        )


def _few(terms: Terms) -> Iterator[str]:
    clients, choice = len(terms.filling("client")), terms.training.clients_per_round
    if clients < FEWEST:
        yield f"secure_aggregation with {clients} client: the sum is what it sent; at least {FEWEST} are needed"
    elif choice != "all" and (choice if isinstance(choice, int) else round(choice * clients)) < FEWEST:
        yield (
            f"secure_aggregation with training.clients_per_round = {choice}: the sum of a round with one client is "
            f"what it sent; at least {FEWEST} are needed"
        )
