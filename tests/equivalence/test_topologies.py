"""Every topology equals a loop in plain torch on the whole model: same rows, same weights, to 1e-12 after 25 steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer import Parts
from equivalence.longhand_topologies import (
    CLASSES,
    MICROS,
    NAMES,
    ROUNDS,
    ROWS,
    STEPS,
    XA,
    XB,
    XC,
    Y2,
    Y,
    assert_close,
    chain,
    classes,
    hops,
    joined,
    linear,
    normal,
    order_key,
    parts,
    set_aside,
    set_stream,
    shuffled,
    split,
    table,
    tanh,
    top_loss,
    trained,
    two_towers,
)


def head_loss(model: Any, b: Tensor) -> Tensor:
    return F.cross_entropy(model.head(model.middle(joined(model, b))), Y[b])


@MICROS
@pytest.mark.parametrize(("holder", "terms"), [
    ("server", {}),
    ("b", {"labels": "b", "labels_leave": True}),
    ("c", {"roles": {"c": "labels"}, "labels_leave": True}),
], ids=["the server", "a party with features", "a party with nothing else"])  # fmt: skip
def test_vertical_equals_the_two_tower_model_wherever_the_labels_are(
    holder: str, terms: dict[str, Any], micro: int
) -> None:
    data = {"a": table(XA), "b": table(XB)}
    data |= {"b": table(XB, Y)} if holder == "b" else {holder: table(Y)}
    model = two_towers(top=tanh(8, CLASSES))
    result = split(model, data, "vertical", micro_batches=micro, **terms)
    assert_close(result.model_for(), trained(model, top_loss))


@MICROS
@pytest.mark.parametrize("holder", ["b", "c"])
def test_vertical_u_shaped_equals_the_two_tower_model_and_the_server_sees_no_label(holder: str, micro: int) -> None:
    data = {"a": table(XA), "b": table(XB, Y)} if holder == "b" else {"a": table(XA), "b": table(XB), "c": table(Y)}
    model = two_towers(middle=tanh(8, 6), head=linear(6, CLASSES))
    terms = {"labels": "b"} if holder == "b" else {"roles": {"c": "labels"}}
    result = split(model, data, "vertical_u_shaped", micro_batches=micro, **terms)
    assert_close(result.model_for(), trained(model, head_loss))
    assert {c.edge for c in result.meters["server"].crossings.values()} == {
        "bottom_a->middle", "bottom_b->middle", "middle->head",
    }  # fmt: skip


@MICROS
def test_a_server_with_features_of_its_own_is_one_tower_more(micro: int) -> None:
    model = parts(bottom_a=tanh(3, 4), bottom_server=tanh(4, 4), top=linear(8, CLASSES))
    result = split(model, {"a": table(XA), "server": table(XB, Y)}, "vertical", micro_batches=micro)

    def loss(m: Any, b: Tensor) -> Tensor:
        return F.cross_entropy(m.top(torch.cat([m.bottom_a(XA[b]), m.bottom_server(XB[b])], 1)), Y[b])

    assert_close(result.model_for(), trained(model, loss))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_any_number_of_parties_is_a_model_of_as_many_towers(count: int) -> None:
    names = NAMES[:count]
    columns = {name: normal(ROWS, 2 + number % 3, seed=number) for number, name in enumerate(names)}
    towers = {f"bottom_{name}": tanh(x.shape[1], 3) for name, x in columns.items()}
    model = parts(**towers, top=linear(3 * count, CLASSES))
    data = {name: table(x) for name, x in columns.items()}
    result = split(model, data | {"server": table(Y)}, "vertical", micro_batches=1 + (count == 3))

    def loss(m: Any, b: Tensor) -> Tensor:
        return F.cross_entropy(
            m.top(torch.cat([m.get_submodule(f"bottom_{n}")(columns[n][b]) for n in names], 1)), Y[b]
        )

    assert_close(result.model_for(), trained(model, loss))


class Attending(nn.Module):
    """Joins activations in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.fc = nn.Linear(4, 1), nn.Linear(4, CLASSES)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        share = torch.sigmoid(self.weight(one))
        return self.fc(share * one - (1 - share) * other)  # type: ignore[no-any-return]


def test_ones_own_module_is_called_with_the_activations_in_party_order() -> None:
    model = two_towers(top=Attending)
    data = {"a": table(XA), "b": table(XB), "server": table(Y)}
    result = split(model, data, "vertical", join="", micro_batches=2)

    def loss(m: Any, b: Tensor) -> Tensor:
        return F.cross_entropy(m.top(m.bottom_a(XA[b]), m.bottom_b(XB[b])), Y[b])

    assert_close(result.model_for(), trained(model, loss))


class Bias(nn.Module):
    """A top must have something to learn: here nothing but the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((CLASSES,), 0.1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.bias


@MICROS
def test_linear_bottoms_that_are_summed_with_one_bias_are_one_linear_layer(micro: int) -> None:
    bottoms = {f"bottom_{name}": _without_bias(width) for name, width in (("a", 3), ("b", 4))}
    model: Any = parts(**bottoms, top=Bias)
    data = {"a": table(XA), "b": table(XB), "server": table(Y)}
    result = split(model, data, "vertical", join="sum", micro_batches=micro)
    whole = nn.Linear(7, CLASSES).double()
    with torch.no_grad():
        whole.weight.copy_(torch.cat([model.bottom_a.weight, model.bottom_b.weight], 1))
        whole.bias.copy_(model.top.bias)
    whole = trained(whole, lambda m, b: F.cross_entropy(m(torch.cat([XA[b], XB[b]], 1)), Y[b]))
    found: Any = result.model_for()
    learned = torch.cat([found.bottom_a.weight, found.bottom_b.weight], 1)
    torch.testing.assert_close(learned, whole.weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.top.bias, whole.bias, rtol=0, atol=1e-12)


def _without_bias(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(width, CLASSES, bias=False)


@pytest.mark.parametrize(("join", "factor"), [("sum", 1.0), ("mean", 1 / 3)])
def test_sums_and_means_of_three_parties(join: str, factor: float) -> None:
    model = parts(bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), bottom_c=tanh(2, 4), top=linear(4, CLASSES))
    data = {"a": table(XA), "b": table(XB), "c": table(XC), "server": table(Y)}
    result = split(model, data, "vertical", join=join)

    def loss(m: Any, b: Tensor) -> Tensor:
        return F.cross_entropy(m.top(factor * (m.bottom_a(XA[b]) + m.bottom_b(XB[b]) + m.bottom_c(XC[b]))), Y[b])

    assert_close(result.model_for(), trained(model, loss))


@MICROS
def test_extended_vanilla_equals_the_whole_model(micro: int) -> None:
    model = two_towers(middle=tanh(8, 6), top=linear(6, CLASSES))
    data = {"a": table(XA), "b": table(XB), "server": table(Y)}
    result = split(model, data, "extended_vanilla", roles={"mid": "middle"}, micro_batches=micro)
    wanted = trained(model, lambda m, b: F.cross_entropy(m.top(m.middle(joined(m, b))), Y[b]))
    assert_close(result.model_for(), wanted)
    assert list(result.weights_of("mid")) == ["middle.0.weight", "middle.0.bias"]


class Reading(nn.Module):
    """Of a row with numbers and a word, two tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(5, 3), nn.Linear(width, 3)

    def forward(self, x: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.fc(x)), self.words(word)


class Crossing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, h: Tensor, words: Tensor) -> Tensor:
        return self.fc(h * words)  # type: ignore[no-any-return]


def test_rows_of_several_tensors_at_several_parties() -> None:
    words = torch.arange(ROWS) % 5, (torch.arange(ROWS) * 3) % 5
    model = parts(bottom_a=lambda: Reading(3), bottom_b=lambda: Reading(4), top=Crossing)
    data = {"a": table(XA, words[0]), "b": table(XB, words[1], Y)}
    result = split(model, data, "vertical", labels="b", labels_leave=True, micro_batches=2)

    def loss(m: Any, b: Tensor) -> Tensor:
        pairs = zip(m.bottom_a(XA[b], words[0][b]), m.bottom_b(XB[b], words[1][b]), strict=True)
        return F.cross_entropy(m.top(*(torch.cat(pair, 1) for pair in pairs)), Y[b])

    assert_close(result.model_for(), trained(model, loss))


# ---------------------------------------------------------------------- hops


@pytest.mark.parametrize(("count", "micro"), [(1, 3), (2, 1), (3, 3), (4, 1)])
def test_multi_hop_equals_the_uncut_model(count: int, micro: int) -> None:
    model = chain()
    cut = ["1", "3", "5", "7", "9"][: count + 1]
    result = split(model, {"a": table(XA, Y)}, "multi_hop", cut=cut, roles=hops(count), micro_batches=micro)
    assert_close(result.model_for("a"), trained(model, lambda m, b: F.cross_entropy(m(XA[b]), Y[b])))


@pytest.mark.parametrize(("schedule", "turn"), [
    ("alternating", "epoch"), pytest.param("alternating", "batch", marks=pytest.mark.slow),
    pytest.param("relay", "epoch", marks=pytest.mark.slow), ("relay", "batch"), ("splitfed_v2", "epoch"),
])  # fmt: skip
def test_multi_hop_equals_vanilla_for_several_clients(schedule: str, turn: str) -> None:
    data = {"a": table(XA, Y), "b": table(normal(11, 3, seed=4), classes(11)), "c": table(XB[:, 1:], Y2)}
    terms: dict[str, Any] = {"schedule": schedule, "turn": turn, "held_out": 0.2, "shuffle": True, "rounds": 2}
    hopping = split(chain(), data, "multi_hop", cut=["1", "5", "7"], roles=hops(2), micro_batches=2, **terms)
    vanilla = split(chain(), data, "vanilla", cut="1", micro_batches=2, **terms)
    for name in data:
        assert_close(hopping.model_for(name), vanilla.model_for(name))
        assert hopping.metrics[name] == pytest.approx(vanilla.metrics[name], abs=1e-12)


# ---------------------------------------------------------------------- randomness, statistics, orders


def noisy(before: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(before, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3))


def test_dropout_and_batch_norm_at_each_party_draw_and_count_as_if_alone() -> None:
    model = parts(bottom_a=noisy(3), bottom_b=noisy(4), top=noisy(8))
    data = {"a": table(XA), "b": table(XB), "server": table(Y)}
    result = split(model, data, "vertical")
    steps = iter(range(ROUNDS * STEPS))

    def loss(m: Any, b: Tensor) -> Tensor:
        turn, step = divmod(next(steps), STEPS)  # the order of rows is told before the first turn
        set_stream("a", "bottom_a", turn + 1, step)
        one = m.bottom_a(XA[b])
        set_stream("b", "bottom_b", turn + 1, step)
        other = m.bottom_b(XB[b])
        set_stream("server", "top", turn + 1, step)
        return F.cross_entropy(m.top(torch.cat([one, other], 1)), Y[b])

    assert_close(result.model_for(), trained(model, loss))


@pytest.mark.parametrize("lead", ["a", "b"])
def test_shuffled_rows_are_the_same_rows_everywhere_by_the_key_of_the_first_party(lead: str) -> None:
    first, second = (lead, "b" if lead == "a" else "a")
    columns = {"a": XA, "b": XB}
    model = two_towers(top=linear(8, CLASSES))
    data = {first: table(columns[first]), second: table(columns[second]), "server": table(Y)}
    rounds = ROUNDS + 3
    model = Parts([(name, model.get_submodule(name)) for name in (f"bottom_{first}", f"bottom_{second}", "top")])
    result = split(model, data, "vertical", shuffle=True, held_out=0.3, rounds=rounds)
    key = order_key(first, result.agreement.plan.digest)
    chosen, aside = set_aside(ROWS, 0.3, key)

    def loss(m: Any, b: Tensor) -> Tensor:
        towers = [m.get_submodule(f"bottom_{name}")(columns[name][b]) for name in (first, second)]
        return F.cross_entropy(m.top(torch.cat(towers, 1)), Y[b])

    assert_close(result.model_for(), trained(model, loss, shuffled(chosen, key, rounds)))
    with torch.no_grad():
        told = loss(result.model_for(), aside).item()
    assert result.metrics["all"]["loss"] == pytest.approx(told, abs=1e-12)
    assert result.metrics["all"]["rows"] == len(aside)


def test_held_out_rows_may_be_datasets_of_their_own() -> None:
    others = {"a": normal(6, 3, seed=5), "b": normal(6, 4, seed=5)}
    labels = classes(6, seed=5)
    model = two_towers(top=linear(8, CLASSES))
    data = {"a": table(XA), "b": table(XB), "server": table(Y)}
    held_out = {name: table(x) for name, x in others.items()} | {"server": table(labels)}
    result = split(model, data, "vertical", held_out=held_out)
    assert_close(result.model_for(), trained(model, top_loss))
    found: Any = result.model_for()
    h = torch.cat([found.bottom_a(others["a"]), found.bottom_b(others["b"])], 1)
    assert result.metrics["all"]["loss"] == pytest.approx(F.cross_entropy(found.top(h), labels).item(), abs=1e-12)
