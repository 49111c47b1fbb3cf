"""vanilla and u_shaped with one client equal the uncut model's own training: any network, any cut, any optimizer."""

from collections.abc import Iterator, Sequence
from itertools import combinations, cycle, islice
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cutlayer import Result, simulate
from cutlayer.errors import CutError
from cutlayer.model.cut import cut
from equivalence.longhand import (
    RECIPES,
    SECRETS,
    Recipe,
    assert_equal_states,
    noise_of,
    slices,
    train_uncut,
)
from equivalence.models import CASES, Case, layers

ROUNDS, ROWS, BATCH = 4, 18, 4
CUT_TWICE = [name for name, case in CASES.items() if case.cuts > 1]
NAMES = {"vanilla": ("bottom", "top"), "u_shaped": ("bottom", "middle", "head")}


def split(case: Case, places: Sequence[str], recipe: Recipe, turn: str = "batch") -> Result:
    return simulate(
        case.model(),
        cut=places,
        topology="vanilla" if len(places) == 1 else "u_shaped",
        data={"a": case.rows(ROWS)},
        batch_size=BATCH,
        rounds=ROUNDS,
        held_out=0.0,
        shuffle=False,
        turn=turn,  # type: ignore[arg-type]
        secrets=SECRETS,
        **recipe.terms,
    )


def assert_equals_uncut(case: Case, places: Sequence[str], recipe: Recipe, turn: str = "batch") -> None:
    names = NAMES["vanilla" if len(places) == 1 else "u_shaped"]
    rounds = [slices(case.rows(ROWS), BATCH)] * ROUNDS
    segments = dict(zip(["", *places], names, strict=True))
    wanted = train_uncut(case.model(), rounds, loss=F.cross_entropy, recipe=recipe, segments=segments, turn=turn)
    assert len(wanted.losses) == 20
    result = split(case, places, recipe, turn)
    losses = [entry["loss"] for entry in result.history]
    if turn == "batch":
        torch.testing.assert_close(losses, wanted.losses, rtol=0, atol=1e-12, msg=lambda m: f"{m} at {places}")
    state = result.model_for("a").state_dict()
    assert_equal_states(state, wanted.state, noise_of(wanted, recipe), f"when cut after {', '.join(places)}")


def possible(model: nn.Module, count: int) -> Iterator[tuple[str, ...]]:
    """The places where the model can be cut into so many parts, in an order that is drawn once and for all."""
    places = list(combinations(layers(model), count - 1))
    Random(count).shuffle(places)  # noqa: S311
    for place in places:
        try:
            cut(model, place, [str(number) for number in range(count)])
        except CutError:
            continue
        yield place


@pytest.mark.parametrize("name", CASES)
def test_vanilla_equals_the_uncut_model_at_every_cut(name: str) -> None:
    cuts = list(possible(CASES[name].model(), 2))
    assert len(cuts) == CASES[name].cuts
    for places, recipe in zip(cuts, cycle(RECIPES.values()), strict=False):
        assert_equals_uncut(CASES[name], places, recipe)


@pytest.mark.parametrize("name", CUT_TWICE)
def test_u_shaped_equals_the_uncut_model_at_some_pairs_of_cuts(name: str) -> None:
    pairs = list(islice(possible(CASES[name].model(), 3), 3))
    assert pairs
    for places, recipe in zip(pairs, cycle(RECIPES.values()), strict=False):
        assert_equals_uncut(CASES[name], places, recipe)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CASES)
def test_vanilla_equals_the_uncut_model_at_every_cut_under_every_optimizer(name: str, recipe: str) -> None:
    for places in possible(CASES[name].model(), 2):
        assert_equals_uncut(CASES[name], places, RECIPES[recipe])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CUT_TWICE)
def test_u_shaped_equals_the_uncut_model_at_every_pair_of_cuts(name: str) -> None:
    for places, recipe in zip(possible(CASES[name].model(), 3), cycle(RECIPES.values()), strict=False):
        assert_equals_uncut(CASES[name], places, recipe)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("places", [("3",), ("0", "4")], ids=["vanilla", "u_shaped"])
def test_turns_of_a_whole_epoch_equal_the_uncut_model_too(places: tuple[str, ...], recipe: str) -> None:
    assert_equals_uncut(CASES["mlp"], places, RECIPES[recipe], turn="epoch")
