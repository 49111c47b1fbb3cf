"""Plans of any schedule with everybody's rows, to be played in any order of delivery."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import LEGAL, TurnUnit
from cutlayer.plan.topology import OWN
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
    schedule: str = ""
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
        if self.plan.schedule.together:
            return dict.fromkeys(self.plan.row_owners, self.rows[0])
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
        "quorum": st.sampled_from(["all", 1]),
        "secure_aggregation": st.booleans(),
    },
).map(lambda more: more | ({"local_epochs": 1} if "local_steps" in more else {}))
"""Terms that some schedules heed; where they mean nothing they change nothing."""


def _straddling(scenario: Scenario) -> Scenario:
    """Half of the runs with all clients' replicas averaged at both sides are cut elsewhere for the first client."""
    if scenario.schedule == "splitfed_v1" and scenario.batch_size % 2:
        scenario.more["straddling"] = True
    return scenario


ROWS = st.builds(Rows, train=st.integers(0, 11), held_out=st.integers(0, 9))
PAIRS = sorted((topology, schedule) for topology, legal in LEGAL.items() for schedule in legal)
"""Each topology with each schedule that it goes with."""


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    topology, schedule = draw(st.sampled_from(PAIRS).filter(lambda pair: pair[0] != OWN or pair[1] == "joint"))
    least, most = (2, 2) if topology == OWN else (1, 4)
    scenario = Scenario(
        topology=topology,
        schedule=schedule,
        rows=tuple(draw(st.lists(ROWS, min_size=least, max_size=most))),
        batch_size=draw(st.integers(1, 5)),
        micro_batches=draw(st.integers(1, 4)),
        rounds=draw(st.integers(0, 3)),
        turn=draw(st.sampled_from(["epoch", "batch"])),
        drop_last=draw(st.booleans()),
        frozen=draw(st.booleans()),
        more=draw(MORE),
    )
    if topology == "decoupled":
        scenario.more["upload_every"] = draw(st.integers(1, 4))
    if topology == "vertical" and draw(st.booleans()):
        scenario.more["others"] = {}  # the lab has the labels
    return _straddling(scenario)


SCENARIOS = scenarios()

MASKED: dict[str, Any] = {"secure_aggregation": True, "quorum": 1}
"""With own masks, whose keys move, too."""

WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("alternating", "", {}),
    ("relay", "", {}),
    ("relay", " by batches", {"turn": "batch"}),
    ("parallel", "", {}),
    ("parallel", " summed by the lab", {"sees_weights": True}),
    ("parallel", " of own", {"client_segments": "own"}),
    ("parallel", " under masks", MASKED | {"local_steps": 1}),
    ("splitfed_v1", "", {}),
    ("splitfed_v1", " summed by the lab", {"sees_weights": True}),
    ("splitfed_v1", " with cuts", {"straddling": True}),
    ("splitfed_v1", " of two", {"clients_per_round": 2, "rounds": 5}),
    ("splitfed_v1", " under masks", MASKED),
    ("splitfed_v2", "", {}),
    ("splitfed_v2", " under masks", MASKED),
    ("splitfed_v2", " under masks, summed by the lab", MASKED | {"sees_weights": True, "clients_per_round": 2}),
    ("splitfed_v2", " summed by the lab", {"sees_weights": True}),
    ("splitfed_v3", "", {}),
    ("splitfed_v3", " of two", {"clients_per_round": 2, "rounds": 5}),
]


NEWER: dict[str, Scenario] = {
    "vertical": Scenario("vertical", UNEQUAL[:2], micro_batches=2, rounds=2),
    "vertical, labels at the lab": Scenario("vertical", UNEQUAL[:3], micro_batches=2, rounds=2, more={"others": {}}),
    "vertical_u_shaped": Scenario("vertical_u_shaped", UNEQUAL[:2], micro_batches=2, rounds=2),
    "extended_vanilla": Scenario("extended_vanilla", UNEQUAL[:2], micro_batches=2, rounds=2),
    "multi_task": Scenario("multi_task", UNEQUAL[:2], micro_batches=2, rounds=2),
    "multi_hop": Scenario("multi_hop", UNEQUAL, micro_batches=2, rounds=2),
    "multi_hop, relay": Scenario("multi_hop", UNEQUAL, micro_batches=2, rounds=2, schedule="relay"),
    "multi_hop, splitfed_v2": Scenario("multi_hop", UNEQUAL, micro_batches=2, rounds=2, schedule="splitfed_v2"),
    "decoupled": Scenario("decoupled", UNEQUAL, micro_batches=2, rounds=2, more={"upload_every": 2}),
    "decoupled, relay": Scenario("decoupled", UNEQUAL, rounds=2, schedule="relay", more={"upload_every": 3}),
    "decoupled, splitfed_v1": Scenario(
        "decoupled", UNEQUAL, rounds=2, schedule="splitfed_v1", more={"upload_every": 2}
    ),
    "semi_supervised": Scenario("semi_supervised", UNEQUAL, micro_batches=2, rounds=2),
    "bottleneck": Scenario("bottleneck", UNEQUAL, micro_batches=2, rounds=2),
    "own": Scenario(OWN, UNEQUAL[:2], micro_batches=2, rounds=2),
}
"""The other topologies, each as it is special."""


def _every() -> Iterator[tuple[str, Scenario]]:
    for topology in ("vanilla", "u_shaped"):
        for schedule, label, more in WAYS:
            scenario = Scenario(topology, UNEQUAL, micro_batches=2, rounds=2, schedule=schedule)
            fields = {name: value for name, value in more.items() if name in ("rounds", "turn")}
            rest = {name: value for name, value in more.items() if name not in fields}
            yield f"{schedule}{label}, {topology}", replace(scenario, **fields, more=rest)
    yield from NEWER.items()


EVERY = dict(_every())
"""Each way in which a schedule moves states, by name."""


def states_used(wire: Wire) -> dict[str, Any]:
    """Which state each `Run` met at each party, and what the states are in the end."""
    words = {name: worker for name, worker in wire.workers.items() if isinstance(worker, Words)}
    return {
        name: (each.used, {replica: each.state(replica) for _, replica in wire.by_replica()})
        for name, each in words.items()
    }
