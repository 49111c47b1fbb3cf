"""Sums under masks where a quorum is enough: who is lost before a sum is opened is done without, who is lost between
that and the round's save is waited for, and the sums are those of the plain run with the same members."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutlayer.model.fixed import ERROR
from cutlayer.plan.membership import Log
from cutlayer.plan.terms import SaveTerms
from cutlayer.simulation import Result, simulate_plan
from equivalence.longhand import SECRETS
from equivalence.test_network_schedules import job as schedule_job
from faults.crew import NEVER, Crew, Outcome
from faults.faults import Fault, kill
from faults.jobs import differences, job_of, simulated
from faults.test_members import PAUSE_S, PROMPT
from processes.crew import Job

MASKED: dict[str, tuple[dict[str, Any], int]] = {
    "splitfed_v1": ({}, 13),
    "splitfed_v2": ({}, 13),
    "parallel": ({"local_steps": 1}, 3),
}
"""What each schedule needs, and a backward of `b` in the second round."""


def masked(crew: Crew, name: str, rounds: int = 4, **terms: Any) -> Job:
    """With one save a round."""
    base = {name: schedule_job(name, "u_shaped", held_out=0.2, **MASKED[name][0])}
    changed = {"limits": PROMPT, "quorum": 2, "secure_aggregation": True, "saves": SaveTerms()} | terms
    return job_of(name, crew, base, rounds, **changed)


def run(crew: Crew, job: Job, *faults: Fault, back_after_s: Mapping[str, float] | None = None) -> Outcome:
    """The run; it is as a simulation is that replays who was there, bit for bit: masks cancel."""
    outcome = crew.run(job, *faults, back_after_s=back_after_s or {}, pause_s=PAUSE_S)
    server = outcome.members["server"]
    assert server.report, outcome.story()
    lost = {name for name, member in outcome.members.items() if not member.report}
    assert lost <= {fault.party for fault in faults}, outcome.story()
    found = differences(outcome, simulated(job, log=log_of(outcome)), without=lost)
    assert not found, f"{found}\n{outcome.story()}"
    return outcome


def log_of(outcome: Outcome) -> Log:
    log: Log = outcome.members["server"].news("log")[0]
    return log


def assert_as_unmasked(job: Job, log: Log) -> None:
    """To the stated precision; Adam passes small errors on, the fixed point alone has 2.2e-11 here."""
    plain = replace(job, terms=replace(job.terms, secure_aggregation=False))
    one, other = (_simulated(each, log) for each in (job, plain))
    for name in job.rows:
        wanted = other.model_for(name).state_dict()
        for key, value in one.model_for(name).state_dict().items():
            assert float((value - wanted[key]).abs().max()) <= 50 * len(job.rows) * ERROR, key


def _simulated(job: Job, log: Log) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        secrets = {name: SECRETS[name] for name in job.terms.parties}
        return simulate_plan(job.agreement(), job.data(), secrets=secrets, log=log)
    finally:
        torch.set_num_threads(threads)


def absences(outcome: Outcome) -> list[tuple[str, ...]]:
    return [each.absent for each in log_of(outcome)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_a_client_that_is_killed_in_a_round_is_done_without_and_the_sums_are_the_plain_ones(
    crew: Crew, name: str
) -> None:
    job = masked(crew, name)
    outcome = run(crew, job, kill("b", ticket=MASKED[name][1], at="backward"), back_after_s={"b": NEVER})
    assert absences(outcome)[-1] == ("b",), outcome.story()
    assert_as_unmasked(job, log_of(outcome))


@pytest.mark.slow
def test_a_client_that_comes_back_joins_the_next_round(crew: Crew) -> None:
    outcome = run(crew, masked(crew, "splitfed_v2", 14), kill("b", ticket=13, at="backward"), back_after_s={"b": 7.0})
    assert ("b",) in absences(outcome), outcome.story()
    assert absences(outcome)[-1] == (), outcome.story()


@pytest.mark.slow
@pytest.mark.parametrize("at", ["opened", "copy"])
def test_a_client_that_is_killed_after_its_key_left_is_waited_for_beyond_the_deadline(crew: Crew, at: str) -> None:
    """Or just before it: the others have told theirs. In the second round; nobody is ever done without."""
    job = masked(crew, "splitfed_v2")
    outcome = run(crew, job, kill("b", save=2, at=at), back_after_s={"b": 7.0})
    assert set(absences(outcome)) == {()}, outcome.story()


@pytest.mark.slow
def test_clients_that_were_killed_themselves_remember_what_they_opened(crew: Crew) -> None:
    """All clients and the server; all but one come back at once, and do not go on without it."""
    job = masked(crew, "splitfed_v2")
    faults = [kill(name, save=2, at="copy") for name in ("a", "b", "c", "server")]
    outcome = run(crew, job, *faults, back_after_s={"b": 8.0})
    assert set(absences(outcome)) == {()}, outcome.story()


@pytest.mark.slow
def test_if_it_never_comes_back_the_run_ends_with_a_sentence_that_names_it(crew: Crew) -> None:
    job = masked(crew, "splitfed_v2")
    outcome = crew.run(job, kill("b", save=2, at="copy"), back_after_s={"b": NEVER}, pause_s=PAUSE_S)
    (failure,) = outcome.members["server"].failures
    assert "for b to join, as a sum was opened when b took part, and its round has not ended" in failure
