"""Claims about what a session keeps: a few tickets, however many rows there are, and no more after many rounds."""

import gc
from collections import Counter
from dataclasses import replace
from types import FunctionType, ModuleType

import pytest

from cutlayer.plan.topology import OWN
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.session import Session
from protocol.claims import assert_all_done
from protocol.joined import Wire
from protocol.scenarios import EVERY, NEWER, Scenario

GROWING = {
    name: scenario for name, scenario in EVERY.items() if scenario.topology in ("u_shaped", OWN) or name == "decoupled"
}


OTHERS = ("vertical", "multi_task", "multi_hop, relay", "decoupled", OWN)
HELD = [(name, frozen) for name in EVERY if name not in NEWER for frozen in (False, True)]
HELD += [(name, False) for name in OTHERS]


@pytest.mark.parametrize(("name", "frozen"), HELD)
def test_nobody_holds_more_than_a_few_tickets_however_many_rows_there_are(name: str, frozen: bool) -> None:
    """Of each owner's rows, that is: joined batches have a ticket for each."""
    many = replace(EVERY[name], rows=(Rows(30, 40), Rows(30, 40)), batch_size=2, frozen=frozen)
    held: Counter[str] = Counter()

    def hold(wire: Wire) -> bool:
        for session in wire.sessions.values():
            for turn in session._works.traffic.turns.values():
                for owner, tickets in Counter(ticket.owner for ticket in turn.flights).items():
                    held[owner] = max(held[owner], tickets)
        return False

    for seed in range(2):
        wire = many.wire(seed, prompt=bool(seed % 2)).run(until=hold)
        assert_all_done(wire)
    assert max(held.values()) <= 4


@pytest.mark.parametrize("scenario", GROWING.values(), ids=GROWING.keys())
def test_a_session_does_not_grow_over_many_rounds(scenario: Scenario) -> None:
    few, many = (_largest(replace(scenario, rounds=rounds, micro_batches=1)) for rounds in (4, 20))
    for name in few:
        assert many[name] <= 1.2 * few[name]


def _largest(scenario: Scenario) -> Counter[str]:
    """The most objects that each party's session keeps in the last rounds, of every seventh event: what grows stays."""
    largest: Counter[str] = Counter()
    last = scenario.play().events

    def weigh(wire: Wire) -> bool:
        if wire.events > last - 250 and wire.events % 7 == 0:
            for name, session in wire.sessions.items():
                largest[name] = max(largest[name], _kept_objects(session))
        return False

    assert_all_done(scenario.wire().run(until=weigh))
    return largest


def _kept_objects(session: Session) -> int:
    """How many objects a session keeps alive, the plan apart."""
    seen = {id(session.plan)}
    queue: list[object] = [session]
    while queue:
        each = queue.pop()
        if id(each) not in seen and not isinstance(each, type | ModuleType | FunctionType):
            seen.add(id(each))
            queue += gc.get_referents(each)
    return len(seen)
