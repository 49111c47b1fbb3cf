"""What a party tells of its rows: each release is written down before it happens, and held to the plan's budgets."""

from collections.abc import Iterator, Sequence

from blake3 import blake3
from torch import Tensor

from cutlayer.codec import raw
from cutlayer.codec.sections import shape_of
from cutlayer.defence.accountant import Release
from cutlayer.defence.defence import Defence, Mechanism
from cutlayer.defence.ledger import Ledger
from cutlayer.party.defences import gradients_tell, learns_from_rows, mechanism_of
from cutlayer.plan.plan import Plan
from cutlayer.plan.terms import Channel, Way
from cutlayer.protocol.messages import Ticket

RESERVED = 64
"""So many releases are flushed at once; after a crash those that were not made count, too."""


class Accounting:
    """The account of party `name`, in a ledger; without one it lives as long as the party does.

    What is not defended and has no budget is not written down: nothing bounds it.
    """

    def __init__(self, plan: Plan, name: str, ledger: Ledger | None = None) -> None:
        self._plan, self._name = plan, name
        self.ledger = ledger or Ledger(None, party=name, plan=plan.digest, budgets=plan.terms.budget)
        self._budgeted = {budget.channel for budget in plan.terms.budget if budget.party == name}
        self._through: tuple[Channel, ...] = ("weights",) if any(self._learning(name)) else ()
        self._trained: dict[str, bool] = {}
        self._reserved: dict[tuple[str, str, str], int] = {}

    def _learning(self, name: str) -> Iterator[bool]:
        """Of each of the party's segments: whether DP-SGD trains it."""
        topology = self._plan.topology
        return (bool(self._plan.learning(s.name)) for s in topology.segments if self._plan.holds(name, s.role))

    def record(
        self,
        place: tuple[str, Way],
        chain: Sequence[Defence],
        ticket: Ticket,
        released: Sequence[Tensor],
        places: Tensor | None,
        *,
        held_out: bool,
    ) -> None:
        """Write the release of a mini-batch down, of the rows at these `places`. Raises `BudgetSpent`, `RunError`."""
        edge, way = place
        channel = self._plan.channel(edge, way)
        if not chain and channel not in self._budgeted:
            return
        if edge not in self._trained:
            self._trained[edge] = learns_from_rows(self._plan, self._name, edge)
        for at, tensor in enumerate(released):
            if not tensor.dim() or not len(tensor):
                continue
            release = Release(
                channel=channel,
                edge=f"{edge}, {way}" + f", {at}" * (len(released) > 1),
                mechanism=mechanism_of(chain, shape_of(tensor)),
                rows=len(tensor),
                places=None if places is None or len(places) != len(tensor) else places.numpy(),
                table="held-out" if held_out else "train",
                trained=self._trained[edge] and channel != "labels",
                through=self._through if channel != "labels" else (),
            )
            self._reserve(release)
            self.ledger.record(release, _digest(tensor, edge, way, ticket, at))

    def stepped(
        self, segment: str, mechanism: Mechanism | None, rows: int, places: Tensor | None, digest: str, ticket: Ticket
    ) -> None:  # fmt: skip
        """Write a step of a segment by DP-SGD down, before it is made. Raises `BudgetSpent`, `RunError`."""
        trained, through = gradients_tell(self._plan, self._name, segment)
        release = Release(
            channel="weights",
            edge=segment,
            mechanism=mechanism,
            rows=rows,
            places=None if places is None else places.numpy(),
            trained=trained,
            through=through,
        )
        self._reserve(release)
        where = repr((segment, ticket.owner, ticket.turn, ticket.step, digest))
        self.ledger.record(release, blake3(where.encode()).hexdigest())

    def _reserve(self, release: Release) -> None:
        """Have some releases like this one flushed at once: one by one that takes milliseconds each."""
        if not self.ledger.lasts or release.mechanism is None:
            return
        place = release.channel, release.edge, release.table
        left = self._reserved.get(place, 0)
        if not left and self.ledger.reserve(release, RESERVED):
            left = RESERVED
        self._reserved[place] = max(0, left - 1)

    def lines(self, delta: float = 1e-5) -> list[str]:
        """For people: what was told by each channel, and the ε that it adds up to."""
        return self.ledger.accountant.lines(delta)


def _digest(tensor: Tensor, *where: object) -> str:
    """Of the bits that are released and of their place: the same ones sent again tell nothing new."""
    hashed = blake3(raw.encode(tensor))
    hashed.update(repr(where).encode())
    return hashed.hexdigest()
