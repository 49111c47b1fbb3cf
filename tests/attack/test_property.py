"""A property of rows from their activations."""

import pytest
import torch
from torch import Tensor, nn

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.property import Property
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError, PlanError

NOTHING = Knowledge()


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_with(count: int, seed: int, apart: float) -> tuple[Tensor, Tensor]:
    """Rows of which those with the property lie `apart` along one axis."""
    flags = (torch.rand(count, generator=drawn(seed)) < 0.4).long()
    rows = torch.randn(count, 5, generator=drawn(seed + 1))
    rows[:, 2] = rows[:, 2] / 4 + apart * flags
    return rows, flags


def crossed(activations: Tensor, flags: Tensor) -> Traffic:
    return Traffic(steps=torch.arange(len(flags)), activations=activations, labels=flags)


def test_a_property_that_activations_show_is_told_of_rows_that_the_probe_never_saw() -> None:
    score = Property().run(crossed(*rows_with(400, 0, 6.0)), NOTHING, 0)
    assert score.value == pytest.approx(1, abs=1e-3)
    assert (score.unit, score.leaks, score.rows) == ("AUC", True, 360)


@pytest.mark.parametrize("runs", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_property_that_activations_do_not_show_leaks_in_at_most_6_of_100(runs: int) -> None:
    leaks = [Property(share=0.3).run(crossed(*rows_with(80, seed, 0.0)), NOTHING, seed).leaks for seed in range(runs)]
    assert sum(leaks) <= 0.06 * runs


def test_a_row_that_crossed_twice_is_either_probed_with_or_scored() -> None:
    activations, flags = rows_with(200, 3, 0.0)
    traffic = Traffic(
        steps=torch.arange(400),
        activations=activations.repeat(2, 1),
        labels=flags.repeat(2),
        rows=torch.arange(200).repeat(2),
    )
    score = Property(share=0.5).run(traffic, NOTHING, 0)
    assert score.rows == 100
    assert not score.leaks


def test_with_the_bottom_and_rows_of_others_no_row_of_the_owner_need_be_known() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bottom = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Tanh())
    (inputs, flags), auxiliary = rows_with(300, 5, 2.0), rows_with(200, 7, 2.0)
    with torch.no_grad():
        activations = bottom.eval()(inputs)
    bottom.train()
    score = Property().run(crossed(activations, flags), Knowledge(known=bottom, auxiliary=auxiliary), 0)
    assert (score.rows, score.leaks, bottom.training) == (300, True, True)
    assert score.value > 0.95
    misled = Knowledge(known=bottom, auxiliary=(auxiliary[0], 1 - auxiliary[1]))
    assert Property().run(crossed(activations, flags), misled, 0).value < 0.05


def test_without_the_bottom_rows_of_others_are_no_help() -> None:
    traffic = crossed(*rows_with(200, 9, 2.0))
    for knowledge in (
        Knowledge(auxiliary=rows_with(50, 11, 2.0)),
        Knowledge(known=nn.Identity(), auxiliary=(torch.zeros(4, 5), None)),
    ):
        assert Property().run(traffic, knowledge, 0) == Property().run(traffic, NOTHING, 0)


def test_what_is_no_property_is_refused() -> None:
    activations, flags = rows_with(60, 13, 1.0)
    with pytest.raises(DataError, match="0 or 1"):
        Property().run(crossed(activations, flags + 1), NOTHING, 0)
    with pytest.raises(DataError, match="both classes"):
        Property().run(crossed(activations, torch.zeros(60)), NOTHING, 0)
    for share in (0.0, 1.0):
        with pytest.raises(PlanError, match="property: share"):
            Property(share=share)
