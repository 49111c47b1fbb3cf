"""A plan run over the network, by processes and mTLS, gives the bits of its simulation, and so of the uncut model."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice

import pytest
import torch

from cutlayer.model.replica import state_digest
from cutlayer.plan.schedule import TurnUnit
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.simulation import simulate_plan
from equivalence.longhand import RECIPES, SECRETS
from equivalence.models import CASES
from equivalence.test_uncut import possible
from processes.crew import Crew, Job

PARTIES = ("a", "b", "server")


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with Crew(tmp_path_factory.mktemp("keys"), PARTIES) as crew:
        yield crew


def method(value: object) -> Method:
    assert isinstance(value, dict)
    return Method(name=value["name"], options={name: option for name, option in value.items() if name != "name"})


def job(
    case: str, cut: tuple[str, ...], recipe: str, turn: TurnUnit = "batch", held_out: float = 0.2, micro: int = 1
) -> Job:
    x = CASES[case].rows(1).tensors[0]
    terms = Terms(
        topology="vanilla" if len(cut) == 1 else "u_shaped",
        schedule="alternating",
        turn=turn,
        model=ModelTerms(cut=cut),
        input=InputTerms(shape=tuple(x.shape[1:]), dtype=str(x.dtype).removeprefix("torch.")),  # type: ignore[arg-type]
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=method(RECIPES[recipe].terms["optimizer"]),
            lr_schedule=method(RECIPES[recipe].terms["lr_schedule"]),
            batch_size=4,
            rounds=2,
            held_out=held_out,
            micro_batches=micro,
        ),
        parties={"a": PartyTerms(role="client"), "b": PartyTerms(role="client"), "server": PartyTerms(role="server")},
    )
    return Job(case=case, terms=terms, rows={"a": 23, "b": 14})


def assert_network_equals_simulation(crew: Crew, job: Job) -> None:
    answers = crew.run(job)
    assert not [answer.error for answer in answers.values() if answer.error]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        simulated = simulate_plan(job.agreement(), job.data(), secrets=SECRETS)
    finally:
        torch.set_num_threads(threads)
    for name, party in simulated.parties.items():
        wanted = {"/".join(r): state_digest(s.replica.module.state_dict()) for r, s in party.segments.items()}
        assert answers[name].report["weights"] == wanted, f"{name}, {job.case} cut after {job.terms.model.cut}"
        assert answers[name].report["bytes"] == simulated.bytes[name]
    for name, scores in simulated.metrics.items():
        if name in answers:  # rows of several parties have no owner who is told
            assert answers[name].report["metrics"][name] == scores
        assert answers["server"].report["metrics"][name] == scores


@pytest.mark.parametrize("name", CASES)
def test_vanilla_over_lanes_gives_the_bits_of_the_simulation(crew: Crew, name: str) -> None:
    cuts = islice(possible(CASES[name].model(), 2), 2)
    for cut, recipe in zip(cuts, RECIPES, strict=False):
        assert_network_equals_simulation(crew, job(name, cut, recipe))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cuts > 1])
def test_u_shaped_over_lanes_gives_the_bits_of_the_simulation(crew: Crew, name: str) -> None:
    (cut,) = islice(possible(CASES[name].model(), 3), 1)
    assert_network_equals_simulation(crew, job(name, cut, "adam", turn="epoch"))


def test_micro_batches_over_lanes_give_the_bits_of_the_simulation(crew: Crew) -> None:
    assert_network_equals_simulation(crew, job("mlp", ("3",), "adamw", micro=3))
    assert_network_equals_simulation(crew, job("mlp", ("0", "4"), "sgd", micro=3))


def test_training_over_flight_gives_the_bits_of_the_simulation(crew: Crew) -> None:
    over_flight = replace(job("mlp", ("3",), "adamw", micro=3), transport="flight")
    assert_network_equals_simulation(crew, crew.pinned(over_flight))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_every_cut_over_lanes_gives_the_bits_of_the_simulation(crew: Crew, name: str) -> None:
    for cut, recipe in zip(possible(CASES[name].model(), 2), cycle(RECIPES), strict=False):
        assert_network_equals_simulation(crew, job(name, cut, recipe))
