"""vanilla and u_shaped with one client equal the uncut model's own training: any network, any cut, any optimizer."""

from collections.abc import Sequence
from itertools import combinations
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

ROUNDS, ROWS, BATCH = 4, 22, 4
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
    assert len(wanted.losses) == 24
    result = split(case, places, recipe, turn)
    losses = [entry["loss"] for entry in result.history]
    if turn == "batch":
        torch.testing.assert_close(losses, wanted.losses, rtol=0, atol=1e-12, msg=lambda m: f"{m} at {places}")
    state = result.model_for("a").state_dict()
    assert_equal_states(state, wanted.state, noise_of(wanted, recipe), f"when cut after {', '.join(places)}")


def possible(model: nn.Module, count: int) -> list[tuple[str, ...]]:
    """All places where the model can be cut into so many parts."""
    found = []
    for places in combinations(layers(model), count - 1):
        try:
            cut(model, places, [str(number) for number in range(count)])
        except CutError:
            continue
        found.append(places)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CASES)
def test_vanilla_equals_the_uncut_model_at_every_cut(name: str, recipe: str) -> None:
    cuts = possible(CASES[name].model(), 2)
    assert len(cuts) == CASES[name].cuts
    for places in cuts:
        assert_equals_uncut(CASES[name], places, RECIPES[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cuts > 1])
def test_u_shaped_equals_the_uncut_model_at_some_pairs_of_cuts(name: str, recipe: str) -> None:
    cuts = Random(f"{name} {recipe}").sample(singles := possible(CASES[name].model(), 3), min(3, len(singles)))
    assert cuts
    for places in cuts:
        assert_equals_uncut(CASES[name], places, RECIPES[recipe])
