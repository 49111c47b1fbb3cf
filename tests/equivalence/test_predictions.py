"""What a trained model answers, with all parties or without some, is what the whole model answers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer import Result
from cutlayer.plan.streams import stream_seed
from equivalence.longhand_topologies import (
    CLASSES,
    CLIENTS,
    MICROS,
    ROUNDS,
    STEPS,
    WEIGHED,
    XA,
    XB,
    Y2,
    Y,
    assert_close,
    chain,
    hops,
    linear,
    normal,
    parts,
    split,
    table,
    tanh,
    tasks,
    trained,
    two_towers,
)

FRESH = {"a": normal(13, 3, seed=7), "b": normal(13, 4, seed=7)}


def fresh() -> dict[str, Any]:
    return {name: table(x) for name, x in FRESH.items()}


def vertical_run(**terms: Any) -> Result:
    model = two_towers(top=linear(8, CLASSES))
    return split(model, {"a": table(XA), "b": table(XB), "server": table(Y)}, "vertical", shuffle=True, **terms)


def answers(found: Any, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        return found.top(torch.cat([found.bottom_a(a), found.bottom_b(b)], 1))  # type: ignore[no-any-return]


def test_predictions_are_what_the_whole_model_answers_for_all_rows_in_order() -> None:
    result = vertical_run()
    told = result.predict(fresh())
    assert list(told) == ["top"]
    torch.testing.assert_close(
        told["top"]["all"], answers(result.model_for(), FRESH["a"], FRESH["b"]), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped", "multi_hop", "decoupled", "semi_supervised", "bottleneck"])
@pytest.mark.parametrize("schedule", ["alternating", "splitfed_v2"])
def test_predictions_of_clients_are_what_their_own_model_answers(topology: str, schedule: str) -> None:
    cuts = {"vanilla": ["1"], "u_shaped": ["1", "5"], "multi_hop": ["1", "3", "5"], "bottleneck": ["1", "3", "5"]}
    one_network = topology in cuts
    helping = {"decoupled": {"auxiliary": linear(4, CLASSES)}, "semi_supervised": {"decoder": linear(4, 3)}}
    model: nn.Module = chain()
    if not one_network:
        model = parts(bottom=tanh(3, 4), **helping[topology], top=linear(4, CLASSES))
    more: dict[str, Any] = {"cut": cuts[topology]} if one_network else {}
    if topology == "multi_hop":
        more["roles"] = hops(2)
    data = {name: table(*rows) for name, rows in CLIENTS.items()}
    result = split(model, data, topology, schedule=schedule, rounds=2, **more)
    told = result.predict({name: table(FRESH["a"]) for name in CLIENTS})
    (node,) = told
    for name in CLIENTS:
        found: Any = result.model_for(name)
        with torch.no_grad():
            wanted = found(FRESH["a"]) if one_network else found.top(found.bottom(FRESH["a"]))
        torch.testing.assert_close(told[node][name], wanted, rtol=0, atol=1e-12)


def test_several_tasks_answer_each_for_itself() -> None:
    model = two_towers(top_server=linear(8, CLASSES), top_s2=linear(8, CLASSES))
    result = split(model, tasks(Y2), "multi_task", **WEIGHED)
    told = result.predict(fresh())
    found: Any = result.model_for()
    with torch.no_grad():
        h = torch.cat([found.bottom_a(FRESH["a"]), found.bottom_b(FRESH["b"])], 1)
        for top in ("top_server", "top_s2"):
            torch.testing.assert_close(told[top]["all"], found.get_submodule(top)(h), rtol=0, atol=1e-12)


def test_absent_parties_are_zeros() -> None:
    result = vertical_run(party_dropout=0.4)
    found: Any = result.model_for()
    zeros = torch.zeros(13, 4, dtype=torch.float64)
    with torch.no_grad():
        one, other = found.bottom_a(FRESH["a"]), found.bottom_b(FRESH["b"])
        wanted = {"b": found.top(torch.cat([one, zeros], 1)), "a": found.top(torch.cat([zeros, other], 1))}
    for absent, answer in wanted.items():
        present = {name: dataset for name, dataset in fresh().items() if name != absent}
        told = result.predict(present, absent=[absent])
        torch.testing.assert_close(told["top"]["all"], answer, rtol=0, atol=1e-12)


@MICROS
@pytest.mark.parametrize("active", [False, True])
def test_a_party_that_is_left_out_of_a_step_gives_zeros_and_gets_none_back(active: bool, micro: int) -> None:
    """Each by the plan's seed; where all are drawn one stays, the server's own columns if it has some."""
    probability, seed = 0.5, 11
    own = "server" if active else "b"
    model = parts(**{"bottom_a": tanh(3, 4), f"bottom_{own}": tanh(4, 4)}, top=linear(8, CLASSES))
    data = {"a": table(XA)} | ({"server": table(XB, Y)} if active else {"b": table(XB), "server": table(Y)})
    result = split(model, data, "vertical", party_dropout=probability, seed=seed, micro_batches=micro)
    steps = iter(range(ROUNDS * STEPS))
    dropped: set[frozenset[str]] = set()

    def loss(m: Any, b: Tensor) -> Tensor:
        turn, step = divmod(next(steps), STEPS)
        towers = {"a": m.bottom_a(XA[b]), own: m.get_submodule(f"bottom_{own}")(XB[b])}
        drawn = {
            name: stream_seed(str(seed).encode(), "left out", f"bottom_{name}->top", turn + 1, step) / 2**63
            for name in ("a", *(() if active else (own,)))
        }
        gone = {name for name, number in drawn.items() if number < probability}
        if not active and len(gone) == 2:
            gone.remove(max(drawn, key=drawn.__getitem__))
        dropped.add(frozenset(gone))
        return F.cross_entropy(m.top(torch.cat([0 * h if n in gone else h for n, h in towers.items()], 1)), Y[b])

    assert_close(result.model_for(), trained(model, loss))
    assert len(dropped) == (2 if active else 3)
