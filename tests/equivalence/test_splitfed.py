"""SplitFed V1 equals FedAvg of the uncut model at every cut, and at different cuts; V2 with one client is vanilla."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice, product
from typing import Any

import pytest
from torch import nn

from equivalence.longhand import EXACT, NOISE, RECIPES
from equivalence.models import CASES
from equivalence.rounds import Setup
from equivalence.schedules import train_fedavg
from equivalence.test_schedules import (
    CUTS,
    POLICIES,
    Cuts,
    assert_equal,
    clients,
    gap,
    network,
    normalised,
    split,
    states,
    states_of,
    sweep,
)
from equivalence.test_uncut import possible

# ---------------------------------------------------------------------- splitfed_v1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("topology", CUTS)
def test_v1_averages_float_buffers_and_leaves_each_client_its_counters(topology: str, policy: str) -> None:
    setup = Setup(data=clients(a=14, b=22, c=7), averaged=policy, recipe=RECIPES["adam"])
    wanted = train_fedavg(normalised(), setup)
    found = states(split(normalised(), (2,) if topology == "vanilla" else (2, 5), setup, schedule="splitfed_v1"))
    assert_equal(found, wanted, noise=True, where=f"splitfed_v1 with BatchNorm, {topology}, {policy}")
    assert [int(state["4.num_batches_tracked"]) for state in found.values()] == [12, 18, 6]


def test_v1_weights_clients_by_their_rows() -> None:
    setup = Setup(data=clients())
    found = states(split(network(), (1,), setup, schedule="splitfed_v1"))
    assert gap(found, states_of(train_fedavg(network(), setup, weighted=False))) > 1e-3


PLACES: dict[str, tuple[Cuts, dict[str, Any]]] = {
    "the second": ((1,), {"b": "3"}),
    "the first and the last": ((2,), {"a": "0", "c": "3"}),
    "two cuts, the last two": ((1, 3), {"b": ["0", "2"], "c": ["0", "3"]}),
}


@sweep("others, recipe, policy", PLACES, RECIPES, POLICIES)
def test_different_cuts_give_the_weights_of_one_cut(others: str, recipe: str, policy: str) -> None:
    """Some of the three clients have their model cut elsewhere."""
    cuts, elsewhere = PLACES[others]
    setup = Setup(data=clients(), recipe=RECIPES[recipe], averaged=policy)
    found = states(split(network(), cuts, setup, schedule="splitfed_v1", cuts=elsewhere))
    where = f"splitfed_v1 cut at {cuts} and {elsewhere}, {recipe}, {policy}"
    assert_equal(found, train_fedavg(network(), setup), noise=False, where=where)


def steady(case: str) -> nn.Module:
    """A network without dropout, and without biases before BatchNorm: Adam makes steps of their gradients' rounding
    errors, and running means carry them on."""
    model = CASES[case].model()
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if case == "conv net" and isinstance(module, nn.Conv2d):
            module.register_parameter("bias", None)
    return model


def assert_fedavg_at(case: str, places: tuple[str, ...], recipe: str, policy: str) -> None:
    data = {name: CASES[case].rows(rows, seed) for seed, (name, rows) in enumerate({"a": 6, "b": 10, "c": 3}.items())}
    setup = Setup(data=data, recipe=RECIPES[recipe], averaged=policy, rounds=2)
    wanted = train_fedavg(steady(case), setup)
    found = states(split(steady(case), places, setup, schedule="splitfed_v1"))
    loose = case == "conv net" and setup.recipe.adaptive  # there its own rounding errors grow to 1e-10
    where = f"splitfed_v1, {case} cut after {places}, {recipe}, {policy}"
    assert_equal(found, wanted, noise=setup.recipe.adaptive, where=where, exact=NOISE if loose else EXACT)


def mixtures() -> Iterator[tuple[str, str]]:
    return cycle(product(RECIPES, POLICIES))


@pytest.mark.parametrize(("case", "stride"), [("mlp", 1), ("conv net", 4), ("resnet", 9), ("transformer", 2)])
def test_v1_equals_fedavg_of_the_uncut_model_at_every_cut(case: str, stride: int) -> None:
    """At every cut of the perceptron, and at some of larger networks; optimizers and policies take turns."""
    for places, mixture in zip(list(possible(CASES[case].model(), 2))[::stride], mixtures(), strict=False):
        assert_fedavg_at(case, places, *mixture)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_v1_equals_fedavg_at_every_cut_of_every_network(case: str) -> None:
    for places, mixture in zip(possible(CASES[case].model(), 2), mixtures(), strict=False):
        assert_fedavg_at(case, places, *mixture)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_v1_equals_fedavg_at_every_cut_under_every_policy_and_optimizer(case: str, recipe: str) -> None:
    for places in possible(CASES[case].model(), 2):
        for policy in POLICIES:
            assert_fedavg_at(case, places, recipe, policy)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.cuts > 1])
def test_v1_equals_fedavg_at_pairs_of_cuts(case: str) -> None:
    for places, mixture in zip(islice(possible(CASES[case].model(), 3), 18), mixtures(), strict=False):
        assert_fedavg_at(case, places, *mixture)


# ---------------------------------------------------------------------- splitfed_v2


@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_v2_with_one_client_is_vanilla_split_learning(recipe: str, topology: str) -> None:
    setup = Setup(data={"b": clients()["b"]}, recipe=RECIPES[recipe], averaged="keep")
    v2 = states(split(network(), CUTS[topology], setup, schedule="splitfed_v2"))
    vanilla = states(split(network(), CUTS[topology], replace(setup, averaged="reset"), schedule="alternating"))
    assert gap(v2, vanilla) < EXACT, f"{topology}, {recipe}"
