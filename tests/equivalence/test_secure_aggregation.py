"""A run with sums under masks: the unmasked run to the stated precision, over lanes the bits of the simulation."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cutlayer.model.fixed import ERROR
from cutlayer.simulation import Result, simulate_plan
from equivalence.longhand import SECRETS
from equivalence.test_network import assert_network_equals_simulation
from equivalence.test_network_schedules import job
from processes.crew import Crew, Job

PARTIES = ("a", "b", "c", "server", "aggregator")
SCHEDULES: dict[str, dict[str, Any]] = {
    "parallel": {"micro_batches": 2, "local_steps": 3},
    "splitfed_v1": {"averaged_optimizer": "keep"},
    "splitfed_v2": {"clients_per_round": 2},
}


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with Crew(tmp_path_factory.mktemp("keys"), PARTIES) as crew:
        yield crew


OWN: dict[str, dict[str, Any]] = {
    "parallel": {"micro_batches": 2, "local_steps": 1},
    "splitfed_v1": {},
    "splitfed_v2": {"clients_per_round": 2},
}
"""The same, as far as it goes with a quorum and own masks."""


def masked(base: Job, *, sees_weights: bool = False) -> Job:
    terms = replace(base.terms, secure_aggregation=True)
    if sees_weights:
        parties = {name: party for name, party in terms.parties.items() if party.role != "aggregator"}
        terms = replace(terms, parties=parties, aggregator_sees_weights=True)
    return replace(base, terms=terms)


def simulated(job: Job) -> Result:
    return simulate_plan(job.agreement(), job.data(), secrets=SECRETS)


@pytest.mark.parametrize("quorum", ["all", 2])
@pytest.mark.parametrize("sees_weights", [False, True], ids=["an aggregator of its own", "the server"])
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_masked_run_equals_the_unmasked_one_to_the_stated_precision(
    schedule: str, topology: str, sees_weights: bool, quorum: Any
) -> None:
    """In float64, with Adam, which passes small errors of gradients on; the fixed point alone has 2.2e-11 here.

    With a quorum clients have own masks, too.
    """
    base = job(schedule, topology, **(SCHEDULES if quorum == "all" else OWN)[schedule])
    base = replace(base, terms=replace(base.terms, quorum=quorum))
    plain, hidden = simulated(base), simulated(masked(base, sees_weights=sees_weights))
    allowed = 50 * len(base.rows) * ERROR
    for name in base.rows:
        wanted = plain.model_for(name).state_dict()
        for key, value in hidden.model_for(name).state_dict().items():
            assert float((value - wanted[key]).abs().max()) <= allowed, key
    assert [entry["party"] for entry in plain.history] == [entry["party"] for entry in hidden.history]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_masked_run_over_lanes_gives_the_bits_of_the_simulation(crew: Crew, schedule: str) -> None:
    """Other keys, so other masks: they cancel to the bit."""
    assert_network_equals_simulation(crew, crew.pinned(masked(job(schedule, "u_shaped", **SCHEDULES[schedule]))))
