"""Every schedule equals its training loop in plain torch, on clients that differ in their rows and in how many."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from equivalence.longhand import EXACT, NOISE, RECIPES, SECRETS, Recipe, train_uncut
from equivalence.rounds import Setup, Trained, layers, served
from equivalence.schedules import (
    train_alternating,
    train_fedavg,
    train_joined,
    train_on_union,
    train_relay,
    train_splitfed_v2,
    train_splitfed_v3,
)

Cuts = tuple[int, ...]
Loop = Callable[[nn.Sequential, Cuts, Setup], Trained]
CUTS = {"vanilla": (1,), "u_shaped": (1, 3)}
POLICIES = ("reset", "keep", "average")
PLAIN = Recipe(terms={"optimizer": {"name": "SGD", "lr": 0.1}}, optimizer=lambda p: optim.SGD(p, lr=0.1))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Softplus(), nn.Linear(7, 3)).double()


def normalised() -> nn.Sequential:
    """BatchNorm on both sides of a cut after layer 2."""
    torch.manual_seed(2)
    first = [nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh()]
    second = [nn.Linear(8, 7, bias=False), nn.BatchNorm1d(7), nn.Softplus()]
    return nn.Sequential(*first, *second, nn.Linear(7, 3)).double()


def clients(**rows: int) -> dict[str, TensorDataset]:
    """Clients whose rows differ in number, place and mix of classes."""
    data = {}
    for number, (name, count) in enumerate((rows or {"a": 6, "b": 11, "c": 3}).items()):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(count, 6, dtype=torch.float64, generator=generator) + number
        mix = torch.tensor([1.0, number, 2.0 - number / 2])
        data[name] = TensorDataset(x, torch.multinomial(mix, count, replacement=True, generator=generator))
    return data


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A schedule as `simulate` is told, and the loop that it must equal."""

    terms: Mapping[str, Any]
    loop: Loop
    averages: bool = False
    joins: bool = False


def _own(model: nn.Sequential, cuts: Cuts, setup: Setup) -> Trained:
    return train_joined(model, cuts, setup, own=set(layers(model)) - served(model, cuts))


VARIANTS = {
    f"{schedule} by {turn}": Variant(
        terms={"schedule": schedule, "turn": turn},
        loop=lambda model, cuts, setup, turn=turn, loop=loop: loop(model, cuts, setup, turn=turn),  # type: ignore[misc]
    )
    for schedule, loop in {"alternating": train_alternating, "relay": train_relay}.items()
    for turn in ("epoch", "batch")
} | {
    "parallel": Variant(terms={"schedule": "parallel"}, loop=train_on_union, joins=True),
    "parallel, own": Variant(terms={"schedule": "parallel", "client_segments": "own"}, loop=_own, joins=True),
    "splitfed_v1": Variant(
        terms={"schedule": "splitfed_v1"},
        loop=lambda model, cuts, setup: train_fedavg(model, setup, at_server=served(model, cuts)),
        averages=True,
    ),
    "splitfed_v2": Variant(terms={"schedule": "splitfed_v2"}, loop=train_splitfed_v2, averages=True),
    "splitfed_v3": Variant(terms={"schedule": "splitfed_v3"}, loop=train_splitfed_v3, averages=True),
}
AVERAGING = [name for name, variant in VARIANTS.items() if variant.averages]


def sweep(names: str, *axes: Iterable[Any], share: int = 3) -> pytest.MarkDecorator:
    """All combinations; one in `share` of them, spread over all axes, is in the fast tier, another one in the slow."""
    tiers = [[], [pytest.mark.slow], *([pytest.mark.long] for _ in range(2, share))]
    marked = [
        pytest.param(*(value for _, value in combination), marks=tiers[spread % share])
        for combination in product(*map(enumerate, axes))
        for spread in [sum(at for at, _ in combination)]
    ]
    return pytest.mark.parametrize(names.split(", "), marked)


def terms_of(setup: Setup) -> dict[str, Any]:
    """The arguments of `simulate` that say what a loop is told; what is as usual is left out."""
    unusual = {
        "clients_per_round": setup.clients,
        "local_epochs": None if setup.epochs == 1 else setup.epochs,
        "local_steps": setup.steps or None,
        "averaged_optimizer": None if setup.averaged == "reset" else setup.averaged,
        "proximal": setup.proximal or None,
        "lr_scales": setup.scales or None,
        "server_optimizer": setup.server and setup.server.terms["optimizer"],
        "personal": [f"{layer}.*" for layer in setup.personal] or None,
    }
    return {
        "batch_size": setup.size,
        "rounds": setup.rounds,
        "drop_last": setup.drop_last,
        "seed": setup.seed,
        "shuffle": setup.secrets is not None,
        "secrets": SECRETS | dict(setup.secrets or {}),
        "held_out": 0.0,
        **setup.recipe.terms,
        **{name: value for name, value in unusual.items() if value is not None},
    }


def split(model: nn.Module, places: tuple[int | str, ...], setup: Setup, **more: Any) -> Result:
    topology = "vanilla" if len(places) == 1 else "u_shaped"
    return simulate(model, cut=places, topology=topology, data=setup.data, **(terms_of(setup) | more))


def states(result: Result) -> dict[str, dict[str, Tensor]]:
    return {
        name: result.model_for(name).state_dict()
        for name, party in result.agreement.plan.terms.parties.items()
        if party.role == "client"
    }


def gap(one: Mapping[str, Mapping[str, Tensor]], other: Mapping[str, Mapping[str, Tensor]]) -> float:
    """The largest difference between states of the same clients."""
    assert list(one) == list(other)
    pairs = ((one[name][key], value) for name, state in other.items() for key, value in state.items())
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def states_of(run: Trained) -> dict[str, dict[str, Tensor]]:
    return {name: model.state_dict() for name, model in run.models.items()}


def assert_equal(
    found: Mapping[str, Mapping[str, Tensor]], wanted: Trained, *, noise: bool, where: str, exact: float = EXACT
) -> None:
    """All clients' states are equal to 1e-12; to 1e-9 where Adam divides rounding errors by themselves."""
    worst = {}
    assert list(found) == list(wanted.models)
    for name, model in wanted.models.items():
        assert list(found[name]) == list(model.state_dict())
        for key, value in model.state_dict().items():
            assert found[name][key].dtype == value.dtype
            allowed = torch.full(value.shape, exact, dtype=torch.float64)
            if noise and key in wanted.largest:
                allowed[(wanted.largest[key] > 0) & (wanted.largest[key] < 1e-14)] = NOISE
            off = (found[name][key].double() - value.double()).abs()
            if not bool((off <= allowed).all()):
                worst[f"{key} of {name}"] = float(off.max())
    ranked = sorted(worst.items(), key=lambda item: -item[1])
    assert not worst, f"{where}: off by up to {ranked[0][1]:.1e}: " + ", ".join(f"{k} {v:.1e}" for k, v in ranked[:6])


def assert_told(result: Result, wanted: Trained, where: str) -> None:
    """Each turn's mean loss, whether turns are of one step or of many."""
    told: dict[tuple[int, str], list[float]] = {}
    for entry in result.history:
        told.setdefault((entry["round"], entry["party"]), []).append(entry["loss"])
    assert told.keys() == wanted.losses.keys(), where
    for key, steps in wanted.losses.items():
        rows = sum(count for count, _ in steps)
        means = [value for _, value in steps] if len(told[key]) > 1 else [sum(n * v for n, v in steps) / rows]
        torch.testing.assert_close(told[key], means, rtol=0, atol=EXACT, msg=lambda text: f"{where}: {text}")


def own_layers(variant: str, model: nn.Sequential, cuts: Cuts, personal: Iterable[str]) -> frozenset[str]:
    """The personal layers of which each client has its own: not those of a server segment that is one for all."""
    private = variant in ("splitfed_v1", "splitfed_v3")
    return frozenset(personal) - (frozenset() if private else frozenset(served(model, cuts)))


def check(variant: str, topology: str, setup: Setup, *, told: bool = True, **more: Any) -> Result:
    """The schedule equals its loop, on the network that is cut once or twice."""
    kind = VARIANTS[variant]
    recipe = next((name for name, recipe in RECIPES.items() if recipe is setup.recipe), "plain SGD")
    where = f"{variant}, {topology}, {recipe}, {setup.averaged}"
    own = own_layers(variant, network(), CUTS[topology], setup.personal)
    wanted = kind.loop(network(), CUTS[topology], replace(setup, personal=own))
    result = split(network(), CUTS[topology], setup, **kind.terms, **more)
    assert_equal(states(result), wanted, noise=setup.recipe.adaptive, where=where)
    if told and not kind.joins:
        assert_told(result, wanted, where)
    return result


# ---------------------------------------------------------------------- every schedule


@sweep("variant, topology, recipe", VARIANTS, CUTS, RECIPES)
def test_a_schedule_equals_its_loop(variant: str, topology: str, recipe: str) -> None:
    check(variant, topology, Setup(data=clients(a=13, b=22, c=7), recipe=RECIPES[recipe]))


MORE: dict[str, dict[str, Any]] = {
    "two epochs a round": {"epochs": 2},
    "three steps a round": {"steps": 3},
    "five shuffled steps a round": {"steps": 5, "secrets": SECRETS},
    "two shuffled epochs a round": {"epochs": 2, "secrets": SECRETS, "rounds": 2},
    "two clients a round": {"clients": 2, "rounds": 4},
    "0.4 of the clients, which is one": {"clients": 0.4, "rounds": 4, "seed": 3},
    "0.01 of the clients, which is still one": {"clients": 0.01, "rounds": 2, "seed": 5},
    "two clients, three shuffled steps": {"clients": 2, "steps": 3, "rounds": 5, "secrets": SECRETS, "seed": 7},
    "whole batches only": {"drop_last": True, "steps": 4},
}


@sweep("variant, how", VARIANTS, MORE)
def test_rounds_of_some_clients_and_of_any_length(variant: str, how: str) -> None:
    """The optimizers take turns, so that LR schedules move on by rounds and by steps."""
    at = list(MORE).index(how)
    recipe = list(RECIPES.values())[at % len(RECIPES)]
    check(variant, list(CUTS)[at % 2], Setup(data=clients(), recipe=recipe, **MORE[how]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_client_without_a_step_takes_part_in_nothing_but_has_the_result(variant: str) -> None:
    data = clients(a=13, d=3, b=22, c=7)
    check(variant, "u_shaped", Setup(data=data, drop_last=True, recipe=RECIPES["adamw"]))


@sweep("policy, recipe, variant, topology", ["keep", "average"], RECIPES, AVERAGING, CUTS)
def test_what_becomes_of_the_optimizer_of_averaged_weights(
    policy: str, recipe: str, variant: str, topology: str
) -> None:
    check(variant, topology, Setup(data=clients(), recipe=RECIPES[recipe], averaged=policy, steps=5))


@sweep("policy, recipe, variant", POLICIES, RECIPES, AVERAGING)
def test_policies_hold_for_clients_that_come_and_go(policy: str, recipe: str, variant: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES[recipe], averaged=policy, clients=2, rounds=5, seed=2)
    check(variant, "vanilla", setup)


@pytest.mark.parametrize("variant", AVERAGING)
def test_policies_differ(variant: str) -> None:
    """The oracle can fail: a schedule that took one policy for another would be seen."""
    kind = VARIANTS[variant]
    runs = [states_of(kind.loop(network(), CUTS["vanilla"], Setup(data=clients(), averaged=each))) for each in POLICIES]
    assert min(gap(runs[0], runs[1]), gap(runs[0], runs[2]), gap(runs[1], runs[2])) > 1e-3


# ---------------------------------------------------------------------- relay


@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_relay_is_pooled_training_only_since_the_optimizer_is_handed_over_too(turn: str, topology: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES["sgd"])
    rounds = [[batch for _, batch in setup.in_turn(number, turn)] for number in range(setup.rounds)]
    pooled = train_uncut(network(), rounds, loss=F.cross_entropy, recipe=setup.recipe, segments={"": "bottom"})
    found = states(split(network(), CUTS[topology], setup, schedule="relay", turn=turn))
    assert gap(found, dict.fromkeys(found, pooled.state)) < EXACT
    forgetful = train_relay(network(), CUTS[topology], setup, turn=turn, hand_over=False)
    assert gap(found, states_of(forgetful)) > 1e-3


@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_relay_hands_on_buffers_and_their_counters(turn: str) -> None:
    setup = Setup(data=clients(a=14, b=22, c=7), recipe=RECIPES["adam"])
    wanted = train_relay(normalised(), (2, 5), setup, turn=turn)
    found = states(split(normalised(), (2, 5), setup, schedule="relay", turn=turn))
    assert_equal(found, wanted, noise=True, where="relay with BatchNorm")
    assert gap(found, dict.fromkeys(found, found["a"])) == 0
    assert found["a"]["1.num_batches_tracked"] == 3 * (4 + 6 + 2)
