"""Claim: a session costs a party little next to the work it orders."""

import time

import pytest

from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Action, Event
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.session import Session
from protocol.joined import LAB, A, Wire, make_plan

BUDGET_S = 25e-6
SLOW_MACHINE = 4
ROWS = {A: Rows(3200, 400), LAB: Rows()}


class Recorded(Wire):
    """Keeps what its sessions were fed."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, ROWS)
        self.fed: list[tuple[str, Event]] = []

    def feed(self, party: str, event: Event) -> list[Action]:
        self.fed.append((party, event))
        return super().feed(party, event)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_an_event_costs_under_25_microseconds(topology: str, micro_batches: int) -> None:
    plan = make_plan(topology, clients=1, batch_size=8, micro_batches=micro_batches)
    wire = Recorded(plan)
    wire.start().run()
    best = min(_replay_s(wire) for _ in range(3)) / len(wire.fed)
    print(f"{topology}, {micro_batches} micro-batches: {best * 1e6:.1f} µs an event, {len(wire.fed):,} events")
    assert best < SLOW_MACHINE * BUDGET_S


def _replay_s(wire: Recorded) -> float:
    """The processor time of new sessions that are fed the same: 400 steps and 50 batches of evaluation."""
    sessions = {name: Session(wire.plan, name, ROWS[name]) for name in ROWS}
    start = time.thread_time()
    for party, event in wire.fed:
        sessions[party].feed(event)
    spent = time.thread_time() - start
    assert all(session.over for session in sessions.values())
    return spent
