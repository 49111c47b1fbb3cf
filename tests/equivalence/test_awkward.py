"""Frozen layers, layers that work in place, tensors without gradients, odd batches: still what the uncut model does."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.plan.tensors import TensorSpec
from equivalence.longhand import (
    RECIPES,
    SECRETS,
    Batch,
    Recipe,
    assert_equal_states,
    noise_of,
    slices,
    train_uncut,
)
from equivalence.models import CASES

NAMES = {1: ("bottom", "top"), 2: ("bottom", "middle", "head")}
ROUNDS = 3


def split(model: nn.Module, places: Sequence[str], rows: TensorDataset, recipe: Recipe, **terms: Any) -> Result:
    settings = {"batch_size": 4, "held_out": 0.0} | terms
    return simulate(
        model,
        cut=places,
        topology="vanilla" if len(places) == 1 else "u_shaped",
        data={"a": rows},
        rounds=ROUNDS,
        shuffle=False,
        turn="batch",
        secrets=SECRETS,
        **recipe.terms,
        **settings,
    )


def assert_equal_to_uncut(
    result: Result, model: nn.Module, places: Sequence[str], batches: list[Batch], recipe: Recipe
) -> None:
    segments = dict(zip(["", *places], NAMES[len(places)], strict=True))
    wanted = train_uncut(model, [batches] * ROUNDS, loss=F.cross_entropy, recipe=recipe, segments=segments)
    torch.testing.assert_close([h["loss"] for h in result.history], wanted.losses, rtol=0, atol=1e-12)
    assert_equal_states(result.model_for("a").state_dict(), wanted.state, noise_of(wanted, recipe))


def gradient_edges(result: Result) -> set[str]:
    """The edges on which gradients crossed, and not only answers without tensors."""
    crossings = result.meters["a"].crossings.values()
    return {crossing.edge for crossing in crossings if crossing.way == "backward" and crossing.payload_bytes}


def graphs(result: Result) -> dict[str, int]:
    """How many tickets' graphs each segment still holds after the run."""
    segments = {name: s for party in result.parties.values() for (name, _), s in party.segments.items()}
    return {name: len(segment._graphs) for name, segment in segments.items()}


# ---------------------------------------------------------------------- frozen layers


def frozen(name: str, *layers: str) -> nn.Module:
    model = CASES[name].model()
    for layer in layers:
        model.get_submodule(layer).requires_grad_(False)
    return model


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("name", "layers", "places", "way_back"),
    [
        ("mlp", ["0"], ["2"], set()),
        ("mlp", ["0"], ["3"], {"bottom->top"}),
        ("mlp", ["3", "5", "6"], ["2"], {"bottom->top"}),
        ("mlp", ["0", "3", "5", "6"], ["2"], set()),
        ("mlp", ["0", "3", "5", "6"], ["2", "4"], set()),
        ("mlp", ["0"], ["2", "4"], {"middle->head"}),
        ("mlp", ["0", "3"], ["2", "4"], set()),
        ("mlp", ["3"], ["2", "4"], {"middle->head", "bottom->middle"}),
        ("mlp", ["5", "6"], ["2", "4"], {"middle->head", "bottom->middle"}),
        ("conv net", ["0", "1"], ["4"], set()),
        ("resnet", ["stem", "layer1"], ["layer1.0.bn2"], set()),
        ("recurrent", ["reader"], ["reader"], set()),
        ("recurrent", ["reader", "scorer"], ["reader", "attention"], {"middle->head"}),
    ],
)
def test_frozen_layers_stay_as_the_uncut_models_and_gradients_cross_only_where_somebody_learns(
    name: str, layers: list[str], places: list[str], way_back: set[str], recipe: str
) -> None:
    rows = CASES[name].rows(18)
    result = split(frozen(name, *layers), places, rows, RECIPES[recipe])
    assert_equal_to_uncut(result, frozen(name, *layers), places, slices(rows, 4), RECIPES[recipe])
    assert gradient_edges(result) == way_back
    assert not any(graphs(result).values())
    before, after = CASES[name].model(), result.model_for("a")
    for layer in layers:
        for old, new in zip(
            before.get_submodule(layer).parameters(), after.get_submodule(layer).parameters(), strict=True
        ):
            assert torch.equal(old, new)


def test_batch_statistics_of_a_frozen_bottom_move_on() -> None:
    result = split(frozen("conv net", "0", "1"), ["4"], CASES["conv net"].rows(18), RECIPES["sgd"])
    assert result.model_for("a").get_submodule("1").get_buffer("num_batches_tracked") == 15


# ---------------------------------------------------------------------- in place


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("places", [["fc1"], ["fc1", "fc2"]])
def test_layers_that_write_in_place_never_reach_the_rows_or_what_was_sent(places: list[str], lazy: bool) -> None:
    """`clip` would write into the rows, `relu_` and `elu` into what has just arrived."""
    case = CASES["in place first"]
    rows, kept = case.rows(18), case.rows(18)
    given: Any = [rows[i] for i in range(18)] if lazy else rows
    result = split(case.model(), places, _Listed(given) if lazy else given, RECIPES["sgd"], held_out={"a": rows})
    wanted = split(case.model(), places, kept, RECIPES["sgd"])
    assert_equal_states(result.model_for("a").state_dict(), wanted.model_for("a").state_dict())
    assert_equal_to_uncut(wanted, case.model(), places, slices(case.rows(18), 4), RECIPES["sgd"])
    for before, after in zip(case.rows(18).tensors, rows.tensors, strict=True):
        assert torch.equal(before, after)


class _Listed(TensorDataset):
    """Samples one by one: the same tensors again and again."""

    def __init__(self, samples: list[tuple[Tensor, ...]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.samples[index]


def test_labels_stay_as_they_were() -> None:
    rows = CASES["mlp"].rows(18)
    labels = rows.tensors[1].clone()
    split(CASES["mlp"].model(), ["2", "4"], rows, RECIPES["sgd"])
    assert torch.equal(labels, rows.tensors[1])


# ---------------------------------------------------------------------- what crosses


def test_a_tensor_without_a_gradient_crosses_beside_one_with() -> None:
    rows = CASES["gated"].rows(18)
    result = split(CASES["gated"].model(), ["gate"], rows, RECIPES["sgd"])
    specs = result.agreement.plan.contents.edges["bottom->top"]
    assert {(spec.dtype, spec.differentiable) for spec in specs} == {
        ("float64", True),
        ("int64", False),
        ("bool", False),
    }
    by_way = {c.way: c.shapes for c in result.meters["a"].crossings.values() if c.edge == "bottom->top"}
    assert sorted(shape.dtype for shape in by_way["forward"]) == ["bool", "float64", "int64"]
    assert [shape.dtype for shape in by_way["backward"]] == ["float64"]


def test_what_passes_by_the_middle_of_a_unet_gets_its_gradient_through_it() -> None:
    places = ["enc2", "mid"]
    rows = CASES["unet"].rows(18)
    result = split(CASES["unet"].model(), places, rows, RECIPES["adam"])
    contents = result.agreement.plan.contents
    passed = TensorSpec(dtype="float64", shape=("B", 3, 4, 4))
    assert passed in contents.edges["bottom->middle"]
    assert passed in contents.edges["middle->head"]
    assert_equal_to_uncut(result, CASES["unet"].model(), places, slices(rows, 4), RECIPES["adam"])


def test_two_tensors_cross_between_explicit_parts() -> None:
    result = split(CASES["recurrent"].model(), ["reader"], CASES["recurrent"].rows(18), RECIPES["sgd"])
    shapes = [spec.shape for spec in result.agreement.plan.contents.edges["bottom->top"]]
    assert shapes == [("B", 4, 5), ("B", 2, 5)]


# ---------------------------------------------------------------------- odd batches


@pytest.mark.parametrize("places", [["3"], ["0", "4"]])
@pytest.mark.parametrize(("rows", "size"), [(7, 1), (9, 4), (3, 8), (8, 4)])
def test_batches_of_one_row_and_a_smaller_last_batch(rows: int, size: int, places: list[str]) -> None:
    data = CASES["mlp"].rows(rows)
    result = split(CASES["mlp"].model(), places, data, RECIPES["sgd"], batch_size=size)
    assert_equal_to_uncut(result, CASES["mlp"].model(), places, slices(data, size), RECIPES["sgd"])


@pytest.mark.parametrize("places", [["3"], ["0", "4"]])
def test_drop_last_leaves_the_smaller_batch_out(places: list[str]) -> None:
    data = CASES["mlp"].rows(11)
    result = split(CASES["mlp"].model(), places, data, RECIPES["adamw"], drop_last=True)
    assert_equal_to_uncut(result, CASES["mlp"].model(), places, slices(data, 4)[:2], RECIPES["adamw"])


def test_a_client_with_fewer_rows_than_a_batch_has_no_turn_under_drop_last() -> None:
    rows = {name: CASES["mlp"].rows(count, seed) for seed, (name, count) in enumerate([("a", 9), ("b", 3)])}
    alone, both = (
        simulate(
            CASES["mlp"].model(),
            cut="3",
            data=data,
            batch_size=4,
            rounds=2,
            lr=0.1,
            held_out=0.0,
            drop_last=True,
            secrets=SECRETS,
        )
        for data in ({"a": rows["a"]}, rows)
    )
    assert [entry["party"] for entry in both.history] == ["a", "a"]
    assert_equal_states(both.model_for("a").state_dict(), alone.model_for("a").state_dict())
    untouched, initial = both.model_for("b").state_dict(), CASES["mlp"].model().state_dict()
    assert torch.equal(untouched["0.weight"], initial["0.weight"])
    assert not torch.equal(untouched["6.weight"], initial["6.weight"])
