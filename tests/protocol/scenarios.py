"""Plans of any schedule with everybody's rows, to be played in any order of delivery."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import SCHEDULES, TurnUnit
from cutlayer.protocol.messages import Rows
from protocol.joined import Wire
from protocol.plans import CLIENTS, make_plan
from protocol.words import Words


@dataclass(frozen=True)
class Scenario:
    """A plan, and everybody's rows."""

    topology: str
    rows: tuple[Rows, ...]
    batch_size: int = 4
    micro_batches: int = 1
    rounds: int = 1
    turn: TurnUnit = "epoch"
    drop_last: bool = False
    frozen: bool = False
    schedule: str = "alternating"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return make_plan(
            self.topology,
            schedule=self.schedule,
            clients=len(self.rows),
            rounds=self.rounds,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
            turn=self.turn,
            drop_last=self.drop_last,
            frozen=self.frozen,
            **self.more,
        )

    @property
    def brought(self) -> dict[str, Rows]:
        return dict(zip(CLIENTS, self.rows, strict=False))

    def wire(self, seed: int | None = None, *, prompt: bool = True, shared: bool = False) -> Wire:
        return Wire(self.plan, self.brought, seed=seed, prompt=prompt, shared=shared).start()

    def play(self, seed: int | None = None, *, prompt: bool = True, shared: bool = False) -> Wire:
        return self.wire(seed, prompt=prompt, shared=shared).run()


UNEQUAL = (Rows(11, 5), Rows(4, 0), Rows(0, 3), Rows(7, 9))

LIMITS = st.builds(Limits, turns_ahead=st.integers(1, 5), max_live=st.integers(1, 5))
MORE = st.fixed_dictionaries(
    {},
    optional={
        "sees_weights": st.booleans(),
        "client_segments": st.sampled_from(["equal", "own"]),
        "clients_per_round": st.sampled_from([1, 2, 0.5, "all"]),
        "local_steps": st.integers(1, 4),
        "local_epochs": st.integers(1, 2),
        "seed": st.integers(0, 9),
        "limits": LIMITS,
    },
).map(lambda more: more | ({"local_epochs": 1} if "local_steps" in more else {}))
"""Terms that some schedules heed; where they mean nothing they change nothing."""


def _straddling(scenario: Scenario) -> Scenario:
    """Half of the runs with all clients' replicas averaged at both sides are cut elsewhere for the first client."""
    if scenario.schedule == "splitfed_v1" and scenario.batch_size % 2:
        scenario.more["straddling"] = True
    return scenario


SCENARIOS = st.builds(
    Scenario,
    topology=st.sampled_from(["vanilla", "u_shaped"]),
    rows=st.lists(st.builds(Rows, train=st.integers(0, 11), held_out=st.integers(0, 9)), min_size=1, max_size=4).map(
        tuple
    ),
    batch_size=st.integers(1, 5),
    micro_batches=st.integers(1, 4),
    rounds=st.integers(0, 3),
    turn=st.sampled_from(["epoch", "batch"]),
    drop_last=st.booleans(),
    frozen=st.booleans(),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    more=MORE,
).map(_straddling)

WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("alternating", "", {}),
    ("relay", "", {}),
    ("relay", " by batches", {"turn": "batch"}),
    ("parallel", "", {}),
    ("parallel", " summed by the lab", {"sees_weights": True}),
    ("parallel", " of own", {"client_segments": "own"}),
    ("splitfed_v1", "", {}),
    ("splitfed_v1", " summed by the lab", {"sees_weights": True}),
    ("splitfed_v1", " with cuts", {"straddling": True}),
    ("splitfed_v1", " of two", {"clients_per_round": 2, "rounds": 5}),
    ("splitfed_v2", "", {}),
    ("splitfed_v2", " summed by the lab", {"sees_weights": True}),
    ("splitfed_v3", "", {}),
    ("splitfed_v3", " of two", {"clients_per_round": 2, "rounds": 5}),
]


def _every() -> Iterator[tuple[str, Scenario]]:
    for topology in ("vanilla", "u_shaped"):
        for schedule, label, more in WAYS:
            scenario = Scenario(topology, UNEQUAL, micro_batches=2, rounds=2, schedule=schedule)
            fields = {name: value for name, value in more.items() if name in ("rounds", "turn")}
            rest = {name: value for name, value in more.items() if name not in fields}
            yield f"{schedule}{label}, {topology}", replace(scenario, **fields, more=rest)


EVERY = dict(_every())
"""Each way in which a schedule moves states, by name."""


def states_used(wire: Wire) -> dict[str, Any]:
    """Which state each `Run` met at each party, and what the states are in the end."""
    words = {name: worker for name, worker in wire.workers.items() if isinstance(worker, Words)}
    return {
        name: (each.used, {replica: each.state(replica) for _, replica in wire.by_replica()})
        for name, each in words.items()
    }
