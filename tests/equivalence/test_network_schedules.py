"""Every schedule over lanes, by processes: the bits of its simulation, states sealed, and an aggregator of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cutlayer.errors import PlanError
from cutlayer.party.run import Network, run
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from equivalence.longhand import SECRETS
from equivalence.test_network import assert_network_equals_simulation
from processes.crew import Crew, Job

PARTIES = ("a", "b", "c", "server", "aggregator")
SUMMED = {"parallel", "splitfed_v1", "splitfed_v2"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "relay": {},
    "parallel": {"micro_batches": 2},
    "splitfed_v1": {"averaged_optimizer": "keep"},
    "splitfed_v2": {"clients_per_round": 2},
    "splitfed_v3": {"proximal": 0.1},
}


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with Crew(tmp_path_factory.mktemp("keys"), PARTIES) as crew:
        yield crew


def job(schedule: str, topology: str, **training: Any) -> Job:
    """Three clients with unequal rows on a small network, Adam."""
    roles = {"a": "client", "b": "client", "c": "client", "server": "server"}
    if schedule in SUMMED:
        roles["aggregator"] = "aggregator"
    terms = Terms(
        topology=topology,
        schedule=schedule,
        model=ModelTerms(cut=("3",) if topology == "vanilla" else ("0", "4")),
        input=InputTerms(shape=(6,), dtype="float64"),
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=Method(name="Adam", options={"lr": 0.01}),
            batch_size=4,
            rounds=2,
            **training,
        ),
        parties={name: PartyTerms(role=role) for name, role in roles.items()},
    )
    return Job(case="mlp", terms=terms, rows={"a": 13, "b": 22, "c": 9})


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_over_lanes_gives_the_bits_of_the_simulation(crew: Crew, schedule: str, topology: str) -> None:
    assert_network_equals_simulation(crew, crew.pinned(job(schedule, topology, **SCHEDULES[schedule])))


def test_a_layer_at_both_sides_is_averaged_over_lanes_as_in_the_simulation(crew: Crew) -> None:
    """The server sends its own copies to the aggregator, by its direct link."""
    base = crew.pinned(job("splitfed_v1", "vanilla"))
    parties = base.terms.parties | {"b": replace(base.terms.parties["b"], cut=("4",))}
    assert_network_equals_simulation(crew, replace(base, terms=replace(base.terms, parties=parties)))


@pytest.mark.parametrize("schedule", ["relay", "splitfed_v2"])
def test_a_party_whose_states_would_be_forwarded_does_not_start_without_keys_to_seal_them(schedule: str) -> None:
    work = job(schedule, "vanilla")
    network = Network(credentials=None, connect=("127.0.0.1", 1), insecure_plaintext_on_loopback=True)
    with pytest.raises(PlanError, match=r"what a tells other parties travels sealed.*cutlayer keys pin"):
        run(work.agreement(), "a", network, secret=SECRETS["a"], data=work.data()["a"])
