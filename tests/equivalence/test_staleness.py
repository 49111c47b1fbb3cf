"""Steps in flight: a split run with staleness is, bit by bit of float64, a loop that keeps old weights by hand."""

import copy
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import PlanError
from cutlayer.simulation import simulate_plan
from equivalence.longhand import EXACT, SECRETS
from equivalence.longhand_topologies import (
    CLASSES,
    XA,
    XB,
    Y,
    assert_close,
    hops,
    linear,
    normal,
    split,
    table,
    two_towers,
)

ROWS, BATCH, ROUNDS = 26, 4, 2
X, LABELS = normal(ROWS, 6), torch.arange(ROWS) % 3
Loss = Callable[[Mapping[str, Any], Tensor], Tensor]
"""Of parts by name, on the rows at these places."""
TERMS: dict[str, Any] = {
    "optimizer": {"name": "Adam", "lr": 0.05},
    "batch_size": BATCH,
    "rounds": ROUNDS,
    "held_out": 0.0,
    "shuffle": False,
    "secrets": SECRETS,
}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    return nn.Sequential(*layers).double()


def by_hand(
    originals: Mapping[str, nn.Module], staleness: Mapping[str, int], loss: Loss, rows: int
) -> dict[str, nn.Module]:
    """Each part goes forward by the weights that it had so many steps ago, and steps by what came back to those."""
    parts: dict[str, nn.Module] = copy.deepcopy(dict(originals))
    optimizers = {name: optim.Adam(part.parameters(), lr=0.05) for name, part in parts.items()}
    for _ in range(ROUNDS):
        kept = {name: [_weights(part)] for name, part in parts.items()}
        for batch in torch.split(torch.arange(rows), BATCH):
            old = {
                name: {
                    key: tensor.clone().requires_grad_()
                    for key, tensor in kept[name][max(0, len(kept[name]) - 1 - staleness[name])].items()
                }
                for name in parts
            }
            loss({name: partial(functional_call, part, old[name]) for name, part in parts.items()}, batch).backward()  # type: ignore[no-untyped-call]
            for name, part in parts.items():
                for key, parameter in part.named_parameters():
                    parameter.grad = old[name][key].grad
                optimizers[name].step()
                kept[name].append(_weights(part))
    return parts


def chained(parts: Mapping[str, Any], batch: Tensor) -> Tensor:
    x = X[batch]
    for part in parts.values():
        x = part((x,))
    return nn.functional.cross_entropy(x, LABELS[batch])


def joined(parts: Mapping[str, Any], batch: Tensor) -> Tensor:
    activations = [parts["bottom_a"]((XA[batch],)), parts["bottom_b"]((XB[batch],))]
    return nn.functional.cross_entropy(parts["top"]((torch.cat(activations, 1),)), Y[batch])


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


CHAINS: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "vanilla by 1": ("1", 1, (1, 0)),
    "vanilla by 3": ("1", 3, (3, 0)),
    "vanilla by more than an epoch": ("1", 9, (9, 0)),
    "u_shaped by 2": (("1", "3"), 2, (2, 1, 0)),
    "u_shaped by 3": (("1", "3"), 3, (3, 1, 0)),
    "multi_hop by 3": (("1", "3", "5"), 3, (3, 2, 1, 0)),
}


def stale(name: str, **terms: Any) -> Result:
    cut, most, _ = CHAINS[name]
    return simulate(
        network(),
        cut=cut,
        topology=name.split()[0],
        data={"a": TensorDataset(X, LABELS)},
        roles=hops(2) if name.startswith("multi_hop") else None,
        staleness=most,
        **TERMS | terms,
    )


@pytest.mark.parametrize("parts_of_a_step", [1, 3])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_with_steps_in_flight_equals_the_loop_with_kept_weights(name: str, parts_of_a_step: int) -> None:
    cut, _, staleness = CHAINS[name]
    places = [int(at) + 1 for at in ([cut] if isinstance(cut, str) else cut)]
    model = network()
    slices = {str(i): model[i:j] for i, j in zip([0, *places], [*places, len(model)], strict=True)}
    wanted = by_hand(slices, dict(zip(slices, staleness, strict=True)), chained, ROWS)
    found = stale(name, micro_batches=parts_of_a_step).model_for("a")
    together = [parameter for part in wanted.values() for parameter in part.parameters()]
    for one, other in zip(found.parameters(), together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=EXACT if parts_of_a_step == 1 else 1e-10)


def test_each_party_tells_how_stale_its_steps_were() -> None:
    result = stale("u_shaped by 3")
    steps = -(-ROWS // BATCH)
    assert result.meters["a"].stale == {0: 2, 1: 2, 2: 2, 3: ROUNDS * (steps - 3)}
    assert result.meters["server"].stale == {0: 2, 1: ROUNDS * (steps - 1)}
    exact = simulate(network(), cut="1", data={"a": TensorDataset(X, LABELS)}, **TERMS)
    assert set(exact.meters["a"].stale) == {0}


@pytest.mark.parametrize("name", CHAINS)
def test_the_order_of_delivery_changes_no_bit_of_stale_steps(name: str) -> None:
    result = stale(name, micro_batches=2)
    wanted = result.model_for("a").state_dict()
    for seed in range(4):
        data = {"a": TensorDataset(X, LABELS)}
        other = simulate_plan(result.agreement, data, secrets=SECRETS, delivery=random.Random(seed))  # noqa: S311
        found = other.model_for("a").state_dict()
        assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_vertical_parties_with_steps_in_flight_equal_two_towers_with_kept_weights() -> None:
    model = two_towers(top=linear(8, CLASSES))
    data: Mapping[str, Any] = {"a": table(XA), "b": table(XB), "server": table(Y)}
    terms = TERMS | {"staleness": 2}
    result = split(model, data, "vertical", deliveries=3, **terms)
    staleness = {"bottom_a": 2, "bottom_b": 2, "top": 0}
    wanted = by_hand({name: getattr(model, name) for name in staleness}, staleness, joined, len(Y))
    for name, part in wanted.items():
        assert_close(getattr(result.model_for(), name), part)
    assert result.meters["a"].stale[2] > 0
    assert set(result.meters["server"].stale) == {0}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "under parallel": ({"schedule": "parallel", "staleness": 1}, "a turn is one step here"),
    "in turns of one step": ({"turn": "batch", "staleness": 1}, "a turn is one step here"),
    "with a window": ({"staleness": 1, "in_flight": 2}, "needs all its steps in flight"),
    "negative": ({"staleness": -1}, "staleness = -1"),
    "auto under parallel": ({"schedule": "parallel", "micro_batches": "auto"}, "nothing can be tried"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_staleness_is_refused_where_it_means_nothing(name: str) -> None:
    terms, sentence = REFUSED[name]
    with pytest.raises(PlanError, match=sentence):
        simulate(
            network(), cut="1", data={"a": TensorDataset(X, LABELS)}, aggregator_sees_weights=True, **TERMS | terms
        )
