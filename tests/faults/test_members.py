"""Where a quorum is enough: the run goes on without a client that is lost, to the bits of a simulation that replays who
was there."""

from dataclasses import replace
from typing import Any

import pytest

from cutlayer.plan.membership import NEVER as BEGINNING
from cutlayer.protocol.events import Connected, Received, Send
from cutlayer.protocol.messages import VERSION, Hello, Rows, Welcome
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.session import Session
from faults.crew import NEVER, Crew, Outcome
from faults.faults import Fault, kill, stop
from faults.jobs import LIMITS, MORE_JOBS, differences, job_of, simulated
from processes.crew import Job
from protocol.plans import LAB, A, B, make_plan

PROMPT = replace(LIMITS, silence_timeout_s=1.5, reconnect_timeout_s=1, rejoin_timeout_s=12, deadline_s=4)
PAUSE_S = 0.1
QUORUM: dict[str, dict[str, Any]] = {name: {"quorum": 2} for name in ("alternating", "splitfed_v1", "splitfed_v2")}
QUORUM |= {name: {"quorum": 2} for name in ("splitfed_v3", "parallel")} | {"vertical": {"quorum": 1}}


def job(crew: Crew, name: str, rounds: int) -> Job:
    return job_of(name, crew, MORE_JOBS, rounds, limits=PROMPT, **QUORUM[name])


def run(crew: Crew, name: str, *faults: Fault, rounds: int = 3, back_after_s: float = 0.0) -> Outcome:
    """The run; it is as a simulation is that replays who was there, for all that came to its end."""
    work = job(crew, name, rounds)
    outcome = crew.run(work, *faults, back_after_s={fault.party: back_after_s for fault in faults}, pause_s=PAUSE_S)
    server = outcome.members["server"]
    assert server.report, outcome.story()
    wanted = simulated(work, log=server.news("log")[0])
    lost = {name for name, member in outcome.members.items() if not member.report}
    assert lost <= {fault.party for fault in faults}, outcome.story()
    found = differences(outcome, wanted, without=lost)
    assert not found, f"{found}\n{outcome.story()}"
    return outcome


def test_who_is_lost_before_the_first_round_ends_is_done_without_from_the_beginning() -> None:
    """There is a save within the round, and with all others; but members change only where a round ends."""
    plan = make_plan(quorum=1)
    standing = Standing(lasting=True, again=True, saves=(2,), committed=(2,), without=frozenset({B}))
    lab = Session(plan, LAB, standing=standing)
    lab.feed(Connected(A))
    said = lab.feed(Received(A, Hello(VERSION, plan.digest, A, Rows(8, 3), "train", (2,), 2)))
    (welcome,) = [each.message for each in said if isinstance(each, Send) and isinstance(each.message, Welcome)]
    assert (welcome.save, welcome.log[-1].absent) == (BEGINNING, (B,))


def absences(outcome: Outcome) -> list[tuple[str, ...]]:
    return [each.absent for each in outcome.members["server"].news("log")[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUORUM)
def test_a_client_that_is_killed_is_done_without_under_each_schedule(crew: Crew, name: str) -> None:
    outcome = run(crew, name, kill("b", ticket=9), back_after_s=NEVER)
    assert absences(outcome)[-1] == ("b",), outcome.story()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUORUM)
def test_a_client_that_comes_back_later_joins_the_next_round(crew: Crew, name: str) -> None:
    outcome = run(crew, name, kill("b", ticket=9), rounds=14, back_after_s=7.0)
    assert ("b",) in absences(outcome), outcome.story()
    assert absences(outcome)[-1] == (), outcome.story()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUORUM)
def test_a_client_that_is_frozen_is_done_without_until_it_wakes(crew: Crew, name: str) -> None:
    outcome = run(crew, name, stop("b", ticket=9, seconds=9.0), rounds=14)
    assert ("b",) in absences(outcome), outcome.story()
