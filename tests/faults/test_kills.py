"""A party killed at any stage of a ticket or a save, and started again: the bits of the undisturbed run."""

from collections.abc import Mapping

import pytest

from faults.crew import Crew
from faults.faults import SAVE, TICKET, Fault, corrupt, drop, duplicate, kill, reorder, stop, truncate
from faults.jobs import JOBS, TRADING_JOBS, differences, job_of, undisturbed
from processes.crew import Job

MIDDLE = {"load": 9, "forward": 5, "backward": 4, "step": 4, "hello": 1, "finish": 1, "finished": 1, "restore": 1}
"""The act at which parties are killed; a save is their third."""


def assert_nothing_is_different(crew: Crew, name: str, *faults: Fault, jobs: Mapping[str, Job] = JOBS) -> None:
    job = job_of(name, crew, jobs)
    outcome = crew.run(job, *faults)
    assert {fault for _, fault in outcome.struck} == set(faults), outcome.story()
    assert not differences(outcome, undisturbed().of(job)), outcome.story()


def test_a_client_and_then_the_server_are_killed_and_nothing_is_different(crew: Crew) -> None:
    assert_nothing_is_different(
        crew, "vanilla", kill("b", ticket=7, at="backward"), kill("server", ticket=30, at="forward")
    )


def test_connections_that_lose_garble_and_cut_off_what_is_sent_and_nothing_is_different(crew: Crew) -> None:
    faults = corrupt("a", frame=10), truncate("server", frame=30), drop("server", frame=60), reorder("b", frame=20)
    assert_nothing_is_different(crew, "vanilla", *faults, duplicate("c", frame=10))


# ---------------------------------------------------------------------- the slow tier

SOURCES = {"vanilla": "a", "u_shaped": "b", "vertical": "a", "relay": "b", "splitfed_v1": "c"}
"""The client that is killed, by job."""
ELSEWHERE = {("server", "load"), ("aggregator", "load"), ("aggregator", "forward"), ("aggregator", "backward")}
ELSEWHERE |= {("aggregator", "step")}
"""What these parties do not do."""
FINISHED = "finished"
"""Killed then, a client is not started again, and the server waits for its goodbye: `limits.rejoin_timeout_s`."""


def _places(name: str) -> list[tuple[str, str]]:
    parties = [SOURCES[name], "server", *(["aggregator"] if name == "splitfed_v1" else [])]
    return [
        (party, at)
        for party in parties
        for at in (*TICKET, *SAVE)
        if (party, at) not in ELSEWHERE and (at != FINISHED or party == "server")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_run_with_saves_gives_the_bits_of_the_simulation(crew: Crew, name: str) -> None:
    assert_nothing_is_different(crew, name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "party", "at"), [(name, *place) for name in JOBS for place in _places(name)])
def test_a_party_is_killed_at_any_stage_and_nothing_is_different(crew: Crew, name: str, party: str, at: str) -> None:
    fault = Fault(kind="kill", party=party, at=at, number=MIDDLE.get(at, 3))
    assert_nothing_is_different(crew, name, fault)


@pytest.mark.slow
@pytest.mark.parametrize("party", ["a", "server"])
@pytest.mark.parametrize("name", TRADING_JOBS)
def test_what_steps_remember_of_each_other_outlives_a_kill(crew: Crew, name: str, party: str) -> None:
    faults = kill(party, ticket=5, at="forward"), kill(party, save=3, at="written", life=2)
    assert_nothing_is_different(crew, name, *faults, jobs=TRADING_JOBS)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_party_is_killed_again_as_it_takes_the_run_up_and_nothing_is_different(crew: Crew, name: str) -> None:
    assert_nothing_is_different(
        crew,
        name,
        kill("a", ticket=6),
        kill("a", save=1, at="hello", life=2),
        kill("a", save=1, at="restore", life=3),
        kill("server", save=2, at="restore"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_parties_are_killed_as_they_say_goodbye_and_nothing_is_different(crew: Crew, name: str) -> None:
    """The server as it is to write that all is over, and so after clients may have left; a client before it has."""
    assert_nothing_is_different(
        crew,
        name,
        kill("b", save=1, at="finish"),
        kill("server", save=1, at="finished"),
        kill("a", save=1, at="finish"),
    )


@pytest.mark.slow
def test_a_client_is_killed_between_its_last_save_and_the_end_and_shows_the_last_weights(crew: Crew) -> None:
    """It never hears that its last save holds; and what it shows is read from there by a third process."""
    undisturbed_run = crew.run(job_of("vanilla", crew))
    last = undisturbed_run.members["b"].news("acts")[0]["commit"]
    faults = kill("b", save=last, at="commit"), kill("b", save=1, at="finished", life=2)
    assert_nothing_is_different(crew, "vanilla", *faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_all_are_killed_at_once_and_nothing_is_different(crew: Crew, name: str) -> None:
    """Here each at its third save, which so holds at some and not at others."""
    parties = job_of(name, crew).terms.parties
    assert_nothing_is_different(
        crew, name, *(kill(party, save=3, at="committed" if party == "server" else "written") for party in parties)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds", [1.0, 6.0, 15.0], ids=["unnoticed", "until links break", "until it is taken for lost"]
)
@pytest.mark.parametrize("party", ["a", "server"])
def test_a_party_is_frozen_and_nothing_is_different(crew: Crew, party: str, seconds: float) -> None:
    assert_nothing_is_different(crew, "vanilla", stop(party, ticket=6, seconds=seconds))
