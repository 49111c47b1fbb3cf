"""What must hold where what clients send is summed under masks. Faults are sentences."""

from collections.abc import Iterator

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
        yield (
            f"secure_aggregation with quorum = {terms.quorum}: a round that is begun again without a client would give "
            'away its share, as the difference of two sums; leave the quorum at "all"'
        )
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


def _few(terms: Terms) -> Iterator[str]:
    clients, choice = len(terms.filling("client")), terms.training.clients_per_round
    if clients < FEWEST:
        yield f"secure_aggregation with {clients} client: the sum is what it sent; at least {FEWEST} are needed"
    elif choice != "all" and (choice if isinstance(choice, int) else round(choice * clients)) < FEWEST:
        yield (
            f"secure_aggregation with training.clients_per_round = {choice}: the sum of a round with one client is "
            f"what it sent; at least {FEWEST} are needed"
        )
