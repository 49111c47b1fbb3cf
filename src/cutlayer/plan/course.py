"""What a schedule needs to know: clients, rows, and the terms that shape turns. Pure functions of plan and members."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from cutlayer.plan.batches import Batch, micro_batches, step_count
from cutlayer.plan.masking import own_masks
from cutlayer.plan.membership import Membership
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import TurnUnit
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.terms import Choice


@dataclass(frozen=True, kw_only=True)
class Course:
    """The clients in party order with their rows, and what the plan says about rounds.

    Turns count a client's steps from the start of a round; `place` says which mini-batch of which epoch that is.
    """

    train_rows: Mapping[str, int]
    held_out_rows: Mapping[str, int]
    rounds: int
    batch_size: int
    drop_last: bool = False
    turn: TurnUnit = "epoch"
    seed: int = 0
    micro_batches: int = 1
    tries: tuple[int, ...] = ()
    """How many micro-batches a step may have, where the conductor is to try them."""
    clients_per_round: Choice = "all"
    local_epochs: int = 1
    local_steps: int = 0
    client_segments: tuple[str, ...] = ()
    averaged_segments: tuple[str, ...] = ()
    equal_clients: bool = True
    row_owners: tuple[str, ...] = ()
    """Where several parties have columns of the same rows: those that bring some."""
    feature_owners: tuple[str, ...] = ()
    """And those whose columns are not labels."""
    periods: Mapping[str, int] = field(default_factory=dict)
    """Edges that carry something only in every so-manyth step."""
    unused_in_prediction: frozenset[str] = frozenset()
    edges_from: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The edges that leave each party."""
    save_every: int = 0
    """After so many steps there is a save within a round; 0: there is none."""
    save_rounds: int = 1
    """After so many rounds there is a save."""
    all_take: bool = False
    """Every client that is there gets each mean, so that any of them can tell it to one that returns."""
    own_masks: bool = False
    """What clients share is under masks of their own, too."""
    first_round: int = 0
    absent: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    """Clients that were absent from the round before the first one, and are there again."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        train_rows: Mapping[str, int],
        held_out_rows: Mapping[str, int],
        membership: Membership = Membership(),  # noqa: B008 (frozen)
    ) -> "Course":
        """The course of a plan, given how many rows each client that is not absent brings."""
        terms, training = plan.terms, plan.terms.training
        return cls(
            train_rows=train_rows,
            held_out_rows=held_out_rows,
            rounds=training.rounds,
            batch_size=training.batch_size,
            drop_last=training.drop_last,
            turn=terms.turn,
            seed=terms.seed,
            micro_batches=1 if training.micro_batches == "auto" else training.micro_batches,
            tries=_tries(plan) if training.micro_batches == "auto" else (),
            clients_per_round=training.clients_per_round,
            local_epochs=training.local_epochs,
            local_steps=training.local_steps,
            client_segments=plan.client_segments,
            averaged_segments=plan.averaged_segments,
            equal_clients=training.client_segments == "equal",
            row_owners=plan.row_owners if plan.schedule.together else (),
            feature_owners=plan.feature_owners if plan.schedule.together else (),
            periods={edge.name: edge.every for edge in plan.topology.edges if edge.every > 1},
            unused_in_prediction=plan.topology.unused_in_prediction,
            edges_from={party: _leaving(plan, party) for party in plan.row_owners} if plan.schedule.together else {},
            save_every=terms.saves.every_steps,
            save_rounds=terms.saves.every_rounds,
            all_take=terms.quorum != "all",
            own_masks=own_masks(terms),
            first_round=membership.round,
            absent=membership.absent,
            returned=membership.returned,
        )

    @property
    def rounds_left(self) -> range:
        """The rounds from the first one on."""
        return range(self.first_round, self.rounds)

    # ------------------------------------------------------------------ who

    @cached_property
    def clients(self) -> tuple[str, ...]:
        return tuple(self.train_rows)

    def chosen(self, number: int) -> tuple[str, ...]:
        """The clients of a round, in party order: the first so many in the seeded order of that round."""
        count = self._clients_per_round
        if count == len(self.clients):
            return self.clients
        return _first(self.clients, count, self.seed, number)

    def shuffled(self, number: int) -> tuple[str, ...]:
        """The clients of a round in a seeded order."""
        return _ordered(self.chosen(number), self.seed, "turns", number)

    def evaluated(self, number: int) -> tuple[str, ...]:
        """Who evaluates after a round: its clients that hold rows out; after the last round all that do."""
        asked = self.clients if number == self.rounds - 1 else self.chosen(number)
        return tuple(party for party in asked if self.held_out_rows[party])

    @cached_property
    def _clients_per_round(self) -> int:
        choice, there = self.clients_per_round, len(self.clients)
        if choice == "all":
            return there
        count = choice if isinstance(choice, int) else round(choice * there)
        return min(max(count, 1), there)

    @cached_property
    def _rounds_of(self) -> Counter[str]:
        """In how many rounds each client takes part."""
        if self._clients_per_round == len(self.clients):
            return Counter(dict.fromkeys(self.clients, self.rounds))
        return Counter(party for number in range(self.rounds) for party in self.chosen(number))

    # ------------------------------------------------------------------ which rows

    def epoch_steps(self, party: str) -> int:
        """Mini-batches in one pass over this party's rows."""
        return step_count(self.train_rows[party], self.batch_size, drop_last=self.drop_last)

    def steps(self, party: str) -> int:
        """Steps that this party takes in a round."""
        per_epoch = self.epoch_steps(party)
        return min(1, per_epoch) * self.local_steps if self.local_steps else self.local_epochs * per_epoch

    def steps_before(self, party: str, number: int) -> int:
        """Steps that this party has taken in the rounds before this one."""
        if self._clients_per_round == len(self.clients):
            return number * self.steps(party)
        return sum(party in self.chosen(earlier) for earlier in range(number)) * self.steps(party)

    def total_steps(self, party: str) -> int:
        """Steps that this party takes in the whole run."""
        return self._rounds_of[party] * self.steps(party)

    def place(self, party: str, number: int, step: int) -> tuple[int, int]:
        """The epoch, and the mini-batch in it, that is the party's step `step` of round `number`.

        With local steps a round goes on where the one before ended.
        """
        per_epoch = self.epoch_steps(party)
        epochs, index = divmod(step + number * self.local_steps, per_epoch)
        return epochs + (0 if self.local_steps else number * self.local_epochs), index

    def parts(self, parties: tuple[str, ...], number: int, step: int) -> int:
        """How many tickets a step has in which `parties` take part together: as many as the smallest batch allows."""
        if self.micro_batches == 1:
            return 1
        return min(self.micro_batches, *(self._batch_rows(party, number, step) for party in parties))

    def batches(self, party: str, number: int, step: int, parts: int) -> list[Batch]:
        """The rows of each ticket of a training step of `party`, in `parts` parts or as many as it has rows."""
        epoch, index = self.place(party, number, step)
        spans = micro_batches(self.train_rows[party], self.batch_size, index, micros=parts)
        return [Batch(epoch, *span) for span in spans]

    def held_out_batches(self, party: str, number: int, step: int) -> list[Batch]:
        """The held-out rows of an evaluation step, in one ticket."""
        spans = micro_batches(self.held_out_rows[party], self.batch_size, step)
        return [Batch(number, *span, held_out=True) for span in spans]

    def _batch_rows(self, party: str, number: int, step: int) -> int:
        _, index = self.place(party, number, step)
        return min(self.batch_size, self.train_rows[party] - index * self.batch_size)


TRIES = (1, 2, 4, 8)


def _tries(plan: Plan) -> tuple[int, ...]:
    most = min(plan.terms.training.batch_size, plan.terms.limits.live_tickets)
    return tuple(parts for parts in TRIES if parts <= most)


def _leaving(plan: Plan, party: str) -> frozenset[str]:
    topology = plan.topology
    return frozenset(edge.name for edge in topology.cuts() if plan.holds(party, topology.role_of(edge.source)))


def _ordered(parties: tuple[str, ...], seed: int, purpose: str, number: int) -> tuple[str, ...]:
    """An order that everybody finds alike: by a stream of the plan's seed, the round and the name."""
    key = str(seed).encode()
    return tuple(sorted(parties, key=lambda party: stream_seed(key, purpose, number, party)))


@lru_cache(maxsize=64)
def _first(parties: tuple[str, ...], count: int, seed: int, number: int) -> tuple[str, ...]:
    taken = set(_ordered(parties, seed, "clients", number)[:count])
    return tuple(party for party in parties if party in taken)
