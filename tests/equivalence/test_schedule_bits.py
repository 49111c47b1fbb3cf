"""What changes no bit of a schedule: neutral terms, who averages, replicas on disk, the order of delivery."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from cutlayer import Result
from cutlayer.simulation import simulate_plan
from equivalence.longhand import RECIPES, SECRETS
from equivalence.rounds import Setup
from equivalence.test_schedules import AVERAGING, CUTS, POLICIES, VARIANTS, clients, gap, network, split, states, sweep


def assert_same_bits(one: Result, other: Result, what: str) -> None:
    assert one.history == other.history, what
    for name, state in states(one).items():
        for key, value in states(other)[name].items():
            assert torch.equal(state[key], value), f"{what}: {key} of {name} by {(state[key] - value).abs().max()}"


NEUTRAL: dict[str, dict[str, Any]] = {
    "all three clients": {"clients_per_round": 3},
    "more clients than there are": {"clients_per_round": 5},
    "all of the clients": {"clients_per_round": 1.0},
    "one epoch": {"local_epochs": 1},
    "rates times one": {"lr_scales": {"a": 1.0, "b": 1.0}},
    "the server's optimizer is everybody's": {"server_optimizer": RECIPES["sgd"].terms["optimizer"]},
    "no pull": {"proximal": 0.0},
    "nothing personal": {"personal": ()},
    "no average at the cut": {"cut_average": 0.0},
    "one replica in memory": {"max_live": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("what", ["all at once", *(pytest.param(what, marks=pytest.mark.slow) for what in NEUTRAL)])
def test_neutral_terms_change_no_bit(what: str, variant: str) -> None:
    setup = Setup(data=clients(a=5, b=11, c=3), secrets=SECRETS, rounds=2)
    terms = VARIANTS[variant].terms
    together = {name: value for neutral in reversed(NEUTRAL.values()) for name, value in neutral.items()}
    plain, neutral = (
        split(network(), CUTS["u_shaped"], setup, **terms, **more) for more in ({}, NEUTRAL.get(what, together))
    )
    assert_same_bits(neutral, plain, f"{variant}, {what}")


@sweep("variant, topology", ["parallel", "splitfed_v1", "splitfed_v2"], CUTS, share=2)
def test_who_averages_changes_no_bit(variant: str, topology: str) -> None:
    setup, terms = Setup(data=clients(), recipe=RECIPES["adam"], rounds=2), VARIANTS[variant].terms
    apart, seeing = (
        split(network(), CUTS[topology], setup, **terms, aggregator_sees_weights=sees) for sees in (False, True)
    )
    assert_same_bits(apart, seeing, f"{variant}, {topology}, the server averages")


@sweep("variant, policy, topology", VARIANTS, POLICIES, CUTS, share=4)
def test_replicas_on_disk_are_those_in_memory(variant: str, policy: str, topology: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES["adam"], clients=2, rounds=4)
    if variant in AVERAGING:
        setup = replace(setup, averaged=policy, proximal=0.1)
    few, many = (
        split(network(), CUTS[topology], setup, **VARIANTS[variant].terms, max_live=count) for count in (1, 32)
    )
    assert_same_bits(few, many, f"{variant}, {topology}, {setup.averaged}, max_live 1")


@sweep("variant, topology", VARIANTS, CUTS, share=2)
def test_the_order_of_delivery_changes_no_bit(variant: str, topology: str) -> None:
    setup = Setup(data=clients(a=9, b=14, c=3), recipe=RECIPES["adam"], secrets=SECRETS, clients=2, seed=4)
    base = split(network(), CUTS[topology], setup, **VARIANTS[variant].terms, micro_batches=2)
    held_out = {name: TensorDataset(*rows[:3]) for name, rows in setup.data.items()}
    in_order, *others = (
        simulate_plan(base.agreement, setup.data, held_out=held_out, secrets=SECRETS, delivery=delivery)
        for delivery in (None, *map(random.Random, range(2)))
    )
    for other in others:
        assert_same_bits(other, in_order, f"{variant}, {topology}")
        assert other.bytes == in_order.bytes
    assert gap(states(in_order), states(base)) == 0, "evaluation changed the weights"
