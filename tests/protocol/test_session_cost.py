"""Claims: a session costs a party little next to the work it orders, and no more where there are many clients."""

import gc
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Action, Connected, Event
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.session import Session
from protocol.joined import Wire
from protocol.plans import CLIENTS, LAB, make_plan

pytestmark = pytest.mark.alone
BUDGET_S = 25e-6
SLOW_MACHINE = 4
FACTOR = 4.0
"""How much more an event may cost with a hundred times the clients: memory that no cache holds."""


class Inbox(deque[Event]):
    """A link's messages; `ready` has its end once for each of them."""

    def __init__(self, me: str, ready: deque[tuple[str, "Inbox"]]) -> None:
        super().__init__()
        self._me, self._ready = me, ready

    def append(self, event: Event) -> None:
        super().append(event)
        self._ready.append((self._me, self))


class Recorded(Wire):
    """Keeps what its sessions were fed, in the order in which it was sent."""

    def __init__(self, plan: Plan, rows: dict[str, Rows]) -> None:
        super().__init__(plan, rows, shared=True)
        self.fed: dict[str, list[Event]] = {name: [] for name in self.sessions}
        self._ready: deque[tuple[str, Inbox]] = deque()

    def connect(self, client: str) -> None:
        for me, peer in ((client, LAB), (LAB, client)):
            inbox = self.links[peer, me] = Inbox(me, self._ready)
            inbox.append(Connected(peer))

    def _choose(self) -> tuple[str, deque[Event]] | None:
        return self._ready.popleft() if self._ready else None

    def _fed(self, party: str, event: Event) -> list[Action]:
        self.fed[party].append(event)
        return super()._fed(party, event)

    def replay_s(self, party: str) -> float:
        """The processor time of a new session that is fed the same, an event."""
        session = Session(self.plan, party, self.rows.get(party, Rows()))
        with uncollected():
            start = time.thread_time()
            for event in self.fed[party]:
                session.feed(event)
            spent = time.thread_time() - start
        assert session.over
        return spent / len(self.fed[party])


@contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector looks at all that a test keeps, not only at a session."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def recorded(rows: Rows, clients: tuple[str, ...], **terms: Any) -> Recorded:
    wire = Recorded(make_plan(clients=clients, **terms), dict.fromkeys(clients, rows))
    with uncollected():
        wire.start().run()
    assert all(session.over for session in wire.sessions.values())
    return wire


@pytest.mark.parametrize("schedule", ["alternating", "splitfed_v1"])
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_an_event_costs_under_25_microseconds(topology: str, micro_batches: int, schedule: str) -> None:
    """400 steps and 50 batches of evaluation."""
    wire = recorded(
        Rows(3200, 400), CLIENTS[:1], topology=topology, schedule=schedule, batch_size=8, micro_batches=micro_batches
    )
    parties = (CLIENTS[0], LAB)
    best = min(sum(wire.replay_s(party) for party in parties) / len(parties) for _ in range(3))
    events = sum(len(wire.fed[party]) for party in parties)
    print(f"{schedule}, {topology}, {micro_batches} micro-batches: {best * 1e6:.1f} µs an event, {events:,} events")
    assert best < SLOW_MACHINE * BUDGET_S


MANY: dict[str, dict[str, Any]] = {
    "alternating": {"schedule": "alternating"},
    "relay": {"schedule": "relay"},
    "parallel": {"schedule": "parallel", "micro_batches": 2},
    "parallel, summed by the lab": {"schedule": "parallel", "sees_weights": True},
    "splitfed_v1": {"schedule": "splitfed_v1"},
    "splitfed_v1, summed by the lab": {"schedule": "splitfed_v1", "sees_weights": True},
    "splitfed_v2": {"schedule": "splitfed_v2"},
    "splitfed_v3": {"schedule": "splitfed_v3"},
}


@pytest.mark.parametrize("terms", MANY.values(), ids=MANY.keys())
def test_an_event_of_the_conductor_costs_no_more_with_a_thousand_clients(terms: dict[str, Any]) -> None:
    """Of which 100 take part in a round; where all batches are joined, with 300 of 300."""
    cost: dict[int, float] = {}
    joined = terms["schedule"] == "parallel"
    for count in (10, 300 if joined else 1000):
        clients = tuple(f"client-{number:04}" for number in range(count))
        chosen = {} if joined else {"clients_per_round": min(count, 100)}
        wire = recorded(Rows(8, 4), clients, batch_size=4, rounds=2, **terms, **chosen)
        cost[count] = min(wire.replay_s(LAB) for _ in range(3))
    told = ", ".join(f"{each * 1e6:.1f} µs of {count} clients" for count, each in cost.items())
    print(f"{', '.join(map(str, terms.values()))}: an event costs {told}")
    few, many = cost.values()
    assert many < SLOW_MACHINE * BUDGET_S
    assert many < FACTOR * few
