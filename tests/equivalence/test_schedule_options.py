"""What a plan may say beside the schedule equals a loop that does the same; what is neutral changes no bit."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equivalence.longhand import RECIPES, SECRETS, LossFunction, Recipe
from equivalence.rounds import Setup, Trained, layers, served
from equivalence.schedules import train_joined, train_on_union
from equivalence.test_schedules import (
    AVERAGING,
    CUTS,
    POLICIES,
    VARIANTS,
    Cuts,
    assert_equal,
    check,
    clients,
    gap,
    network,
    normalised,
    own_layers,
    split,
    states,
    states_of,
    sweep,
)

BOTH = pytest.mark.parametrize("topology", CUTS)
EVERY = pytest.mark.parametrize("variant", VARIANTS)
ANY = pytest.mark.parametrize("recipe", RECIPES)
ONE_AT_A_TIME = [name for name, variant in VARIANTS.items() if not variant.joins]


def client_layers(model: nn.Sequential, cuts: Cuts) -> set[str]:
    return set(layers(model)) - served(model, cuts)


def assert_joined(
    model: nn.Sequential, cuts: Cuts, setup: Setup, wanted: Trained, where: str, **more: Any
) -> dict[str, dict[str, Tensor]]:
    found = states(split(model, cuts, setup, schedule="parallel", **more))
    topology = "vanilla" if len(cuts) == 1 else "u_shaped"
    assert_equal(found, wanted, noise=setup.recipe.adaptive, where=f"parallel, {topology}, {where}")
    return found


# ---------------------------------------------------------------------- parallel

WEIGHT = [0.2, 3.0, 1.0]
LOSSES: dict[str, tuple[dict[str, Any], LossFunction]] = {
    "weights": (
        {"name": "cross_entropy", "weight": WEIGHT},
        lambda out, y: F.cross_entropy(out, y, weight=torch.tensor(WEIGHT, dtype=out.dtype)),
    ),
    "weights and smoothing": (
        {"name": "cross_entropy", "weight": WEIGHT, "label_smoothing": 0.1},
        lambda out, y: F.cross_entropy(out, y, weight=torch.tensor(WEIGHT, dtype=out.dtype), label_smoothing=0.1),
    ),
    "a class ignored": (
        {"name": "cross_entropy", "ignore_index": 2},
        lambda out, y: F.cross_entropy(out, y, ignore_index=2),
    ),
}


@sweep("loss, micro_batches, segments, topology", LOSSES, [1, 2, 3], ["equal", "own"], CUTS)
def test_parallel_has_one_mean_over_the_union(loss: str, micro_batches: int, segments: str, topology: str) -> None:
    terms, function = LOSSES[loss]
    setup = Setup(data=clients(), loss=function)
    own = client_layers(network(), CUTS[topology]) if segments == "own" else set()
    wanted = train_joined(network(), CUTS[topology], setup, own=own)
    more = {"client_segments": segments, "micro_batches": micro_batches, "loss": terms}
    assert_joined(network(), CUTS[topology], setup, wanted, f"{loss}, {segments}, {micro_batches} parts", **more)


@BOTH
@ANY
def test_parallel_is_a_large_batch_only_if_gradients_are_summed(recipe: str, topology: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES[recipe])
    wanted = train_on_union(network(), CUTS[topology], setup)
    found = assert_joined(network(), CUTS[topology], setup, wanted, recipe)
    assert gap(found, dict.fromkeys(found, found["a"])) == 0
    assert gap(found, states_of(train_on_union(network(), CUTS[topology], setup, averaged=True))) > 1e-3


@sweep("segments, recipe, topology", ["equal", "own"], RECIPES, CUTS)
def test_batch_norm_at_the_server_sees_the_union(segments: str, recipe: str, topology: str) -> None:
    cuts = (0,) if topology == "vanilla" else (0, 4)
    setup = Setup(data=clients(a=13, b=23, c=7), recipe=RECIPES[recipe])
    own = client_layers(normalised(), cuts) if segments == "own" else set()
    wanted = train_joined(normalised(), cuts, setup, own=own)
    found = assert_joined(normalised(), cuts, setup, wanted, f"{recipe}, BatchNorm", client_segments=segments)
    assert [int(state["4.num_batches_tracked"]) for state in found.values()] == [18, 18, 18]


@sweep("part, recipe, topology", [0.3, 0.5, 1.0], RECIPES, CUTS)
def test_gradients_at_the_cut_are_averaged_for_a_part_of_the_rows(part: float, recipe: str, topology: str) -> None:
    setup = Setup(data=clients(a=13, b=22, c=7), recipe=RECIPES[recipe])
    own = client_layers(network(), CUTS[topology])
    wanted = train_joined(network(), CUTS[topology], setup, own=own, cut_average=part)
    more = {"client_segments": "own", "cut_average": part}
    found = assert_joined(network(), CUTS[topology], setup, wanted, f"{recipe}, {part} of the cut averaged", **more)
    assert gap(found, states_of(train_joined(network(), CUTS[topology], setup, own=own))) > 1e-3


# ---------------------------------------------------------------------- FedProx


@sweep("recipe, variant, topology", RECIPES, AVERAGING, CUTS, share=2)
def test_fedprox_draws_averaged_layers_to_where_the_round_began(recipe: str, variant: str, topology: str) -> None:
    policy = POLICIES[list(RECIPES).index(recipe)]
    setup = Setup(data=clients(), recipe=RECIPES[recipe], proximal=0.5, averaged=policy, epochs=2, clients=2, rounds=4)
    check(variant, topology, setup)
    near, free = (
        VARIANTS[variant].loop(network(), CUTS[topology], replace(setup, proximal=mu)) for mu in (setup.proximal, 0.0)
    )
    assert gap(states_of(near), states_of(free)) > 1e-4


# ---------------------------------------------------------------------- personal layers

PERSONAL = [name for name in ONE_AT_A_TIME if "alternating" not in name]


@sweep("variant, layer, recipe, topology", PERSONAL, ["0", "2", "4"], ["sgd", "adamw"], CUTS, share=4)
def test_personal_layers_stay_with_their_owner(variant: str, layer: str, recipe: str, topology: str) -> None:
    averaged = POLICIES[(int(layer) // 2 + len(recipe)) % 3] if variant in AVERAGING else "reset"
    setup = Setup(data=clients(), recipe=RECIPES[recipe], personal=frozenset({layer}), averaged=averaged)
    found = states(check(variant, topology, setup))
    own = own_layers(variant, network(), CUTS[topology], {layer})
    if variant != "splitfed_v3":
        same = {key for key, value in found["a"].items() if torch.equal(value, found["b"][key])}
        assert same == {key for key in found["a"] if key.partition(".")[0] not in own}
    if own:
        assert gap({"b": found["a"]}, {"b": found["b"]}) > 1e-3


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
@pytest.mark.parametrize(("topology", "layer"), [("vanilla", "0"), ("u_shaped", "0"), ("u_shaped", "4")])
def test_personal_layers_at_clients_step_by_their_own_gradients(topology: str, layer: str, recipe: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES[recipe], personal=frozenset({layer}))
    wanted = train_joined(network(), CUTS[topology], setup, own={layer})
    found = assert_joined(network(), CUTS[topology], setup, wanted, f"{recipe}, layer {layer} is personal")
    same = {key for key, value in found["a"].items() if torch.equal(value, found["b"][key])}
    assert same == {key for key in found["a"] if key.partition(".")[0] != layer}


@BOTH
def test_a_layer_that_joined_rows_meet_together_is_nobodys_own(topology: str) -> None:
    one, other = (Setup(data=clients(), personal=frozenset(layers)) for layers in ("", "2"))
    plain, personal = (states(split(network(), CUTS[topology], each, schedule="parallel")) for each in (one, other))
    assert gap(plain, personal) == 0


@BOTH
@pytest.mark.parametrize("variant", ["relay by epoch", "splitfed_v1", "splitfed_v2", "splitfed_v3"])
def test_personal_batch_norm_keeps_its_weights_and_statistics(variant: str, topology: str) -> None:
    """FedBN (Li et al. 2021, arXiv 2102.07623), at the clients and at the server."""
    cuts = (2,) if topology == "vanilla" else (2, 5)
    averaged = "keep" if variant in AVERAGING else "reset"
    setup = Setup(data=clients(a=14, b=22, c=7), personal=frozenset({"1", "4"}), averaged=averaged)
    own = own_layers(variant, normalised(), cuts, setup.personal)
    wanted = VARIANTS[variant].loop(normalised(), cuts, replace(setup, personal=own))
    result = split(normalised(), cuts, setup, **VARIANTS[variant].terms, personal=["type:BatchNorm1d"])
    assert_equal(states(result), wanted, noise=False, where=f"{variant}, {topology}, personal BatchNorm")


@sweep("recipe, topology", ["sgd", "adamw"], CUTS, share=2)
def test_personal_batch_norm_may_lie_at_the_clients_of_a_joined_step(recipe: str, topology: str) -> None:
    """Else client layers with BatchNorm could not be equal everywhere: each sees its own client's rows."""
    cuts = (2,) if topology == "vanilla" else (2, 5)
    setup = Setup(data=clients(a=14, b=22, c=7), recipe=RECIPES[recipe])
    wanted = train_joined(normalised(), cuts, setup, own={"1"})
    assert_joined(normalised(), cuts, setup, wanted, f"{recipe}, personal BatchNorm", personal=["1.*"])


# ---------------------------------------------------------------------- the server's optimizer and its rates


SERVERS = {"sgd": "adam", "adam": "sgd", "adamw": "sgd"}


def with_schedule_of(recipe: Recipe, other: Recipe) -> Recipe:
    return replace(recipe, schedule=other.schedule, every=other.every)


@sweep("recipe, variant, topology", SERVERS, VARIANTS, CUTS, share=4)
def test_the_server_has_an_optimizer_of_its_own(recipe: str, variant: str, topology: str) -> None:
    server = with_schedule_of(RECIPES[SERVERS[recipe]], RECIPES[recipe])
    check(variant, topology, Setup(data=clients(), recipe=RECIPES[recipe], server=server))


@sweep("variant, recipe, topology", ONE_AT_A_TIME, RECIPES, CUTS, share=4)
def test_the_server_scales_its_rate_for_a_clients_rows(variant: str, recipe: str, topology: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES[recipe], scales={"a": 3.0, "b": 0.5})
    check(variant, topology, setup)
    plain, scaled = (
        VARIANTS[variant].loop(network(), CUTS[topology], replace(setup, scales=scales))
        for scales in ({}, setup.scales)
    )
    assert gap(states_of(plain), states_of(scaled)) > 1e-3


# ---------------------------------------------------------------------- everything at once


def drawn(number: int) -> tuple[str, str, Setup]:
    """A variant, a topology and a setup with some of everything."""
    draw = random.Random(number)  # noqa: S311
    variant, recipe = draw.choice(list(VARIANTS)), RECIPES[draw.choice(list(RECIPES))]
    kind, other = VARIANTS[variant], RECIPES[draw.choice(list(RECIPES))]
    steps = draw.choice([0, 0, 1, 3, 8])
    personal = draw.choice(["0", "2", "4", ""])
    if (
        kind.joins
        or "alternating" in variant
        or (recipe.every == "step" and variant not in ("splitfed_v1", "splitfed_v3"))
    ):
        personal = ""
    setup = Setup(
        data=clients(**{name: draw.randint(2, 17) for name in ("a", "b", "c")}, d=draw.choice([3, 9])),
        recipe=recipe,
        server=draw.choice([None, with_schedule_of(other, recipe)]),
        rounds=draw.randint(2, 5),
        drop_last=draw.random() < 0.3,
        steps=steps,
        epochs=1 if steps else draw.choice([1, 2]),
        clients=draw.choice([None, 1, 2, 3, 0.5]),
        seed=draw.randint(0, 9),
        secrets=draw.choice([None, SECRETS | {"d": b"d" * 32}]),
        averaged=draw.choice(POLICIES) if kind.averages else "reset",
        proximal=draw.choice([0.0, 0.3]) if kind.averages else 0.0,
        scales={} if kind.joins else draw.choice([{}, {"b": 2.0, "c": 0.25}]),
        personal=frozenset({personal} - {""}),
    )
    return variant, draw.choice(list(CUTS)), setup


@pytest.mark.parametrize("number", range(12))
def test_terms_go_together(number: int) -> None:
    variant, topology, setup = drawn(number)
    check(variant, topology, setup, told=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "start", [pytest.param(at, marks=pytest.mark.long if at > 100 else pytest.mark.slow) for at in range(100, 400, 25)]
)
def test_many_terms_go_together(start: int) -> None:
    for number in range(start, start + 25):
        variant, topology, setup = drawn(number)
        check(variant, topology, setup, told=False)
