"""Runs of three clients of which two are enough, stopped where some are late, lost or away."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from cutlayer.plan.limits import Limits
from cutlayer.protocol.events import Lost, Send, Tick
from cutlayer.protocol.messages import Bye, Rows
from protocol.joined import Wire
from protocol.lasting import Lasting, lasting
from protocol.plans import LAB, A, B, C
from protocol.scenarios import Scenario

LIMITS = Limits(join_timeout_s=300, deadline_s=60, progress_timeout_s=900, turns_ahead=2)
ROWS = (Rows(8, 3), Rows(5, 2), Rows(7, 1))


def of_three(schedule: str = "alternating", *, quorum: Any = 2, rounds: int = 3, **more: Any) -> Scenario:
    scenario = Scenario("vanilla", ROWS, rounds=rounds, schedule=schedule, more={"limits": LIMITS, **more})
    return replace(scenario, more=scenario.more | {"quorum": quorum})


def begun_without(*late: str, scenario: Scenario | None = None, **how: Any) -> Lasting:
    """The lab has begun without these, whose link to it stands no more."""
    wire = connected(scenario or of_three(), {A, B, C} - {*late}, **how)
    wire.feed(LAB, Tick(LIMITS.deadline_s + 1, LIMITS.deadline_s + 1))
    return wire


def connected(scenario: Scenario, there: Collection[str], disks: Any = None, **how: Any) -> Lasting:
    """Those that are there have said who they are, and all wait for the others."""
    wire = Lasting(scenario.plan, scenario.brought, disks, **how)
    for name in wire.sessions:
        if name != LAB and (name in there or name not in (A, B, C)):
            wire.connect(name)
    wire.run()
    return wire


def waiting_for_the_next_round() -> Wire:
    """`hospital-c` came when the run had begun without it."""
    wire = begun_without(C)
    wire.run(until=lambda wire: wire.events > 20)
    wire.connect(C)
    wire.run(until=lambda wire: bool(wire.sessions[LAB]._waiting) and not wire.links[C, LAB])
    return wire


def away() -> Wire:
    """All is over at the lab, and `hospital-a` was lost before it heard so."""
    wire = lasting(of_three())
    wire.run(until=lambda wire: Send(A, Bye()) in wire.sent(LAB))
    wire.feed(LAB, Lost(A, "it is gone"))
    return wire
