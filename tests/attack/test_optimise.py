"""Inversion by optimisation: a bottom that is known is inverted by descent alone."""

import copy

import pytest
import torch
from torch import Tensor, nn

from attack.test_decoder import COLUMNS, Constant, blobs, crossed, drawn, linear
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.optimise import Optimise, variation
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError, PlanError


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))


def orthogonal() -> nn.Linear:
    bottom = linear(6, 6)
    with torch.no_grad():
        bottom.weight.copy_(torch.linalg.qr(drawn(1, 6, 6)).Q / COLUMNS)
    return bottom


def test_tables_behind_an_invertible_linear_bottom_are_read_nearly_exactly() -> None:
    bottom = orthogonal()
    x, auxiliary = drawn(3, 50, 6) * COLUMNS, drawn(4, 50, 6) * COLUMNS
    score = Optimise().run(crossed(bottom, x), Knowledge(auxiliary=(auxiliary, None), known=bottom), 0)
    assert (score.unit, score.rows) == ("R²", 50)
    assert score.value > 0.999
    assert score.leaks


def test_small_images_behind_a_random_convolution_are_recovered_without_other_data() -> None:
    bottom = conv()
    score = Optimise(tv=0.01).run(crossed(bottom, blobs(2, 16)), Knowledge(known=bottom), 0)
    assert score.unit == "SSIM"
    assert score.value > 0.9 > score.chance
    assert score.leaks


@pytest.mark.parametrize("measure", ["mse", "r2"])
def test_images_can_be_measured_otherwise(measure: str) -> None:
    bottom = conv()
    score = Optimise(tv=0.01, measure=measure).run(crossed(bottom, blobs(2, 16)), Knowledge(known=bottom), 0)
    assert score.unit == {"mse": "MSE", "r2": "R²"}[measure]
    assert score.better == {"mse": "smaller", "r2": "larger"}[measure]
    assert score.leaks


@pytest.mark.parametrize("x", [drawn(3, 60, 6), blobs(3, 60)], ids=["tables", "images"])
def test_a_constant_bottom_gives_chance(x: Tensor) -> None:
    score = Optimise(steps=20).run(
        crossed(Constant(), x), Knowledge(auxiliary=(x.roll(1, 0)[:50], None), known=Constant()), 0
    )
    assert not score.leaks
    assert score.value <= score.chance + 1e-6


def test_total_variation_makes_what_is_found_smoother() -> None:
    bottom = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    start = drawn(1, 2, 1, 12, 12).abs().clamp(max=1)
    traffic, knowledge = crossed(bottom, blobs(2, 8)), Knowledge(known=bottom, auxiliary=(start, None))
    found = [Optimise(steps=50, tv=tv).run(traffic, knowledge, 0).shown for tv in (0.0, 0.1)]
    rough, smooth = (float(variation(pair[1]).mean()) for pair in found if pair is not None)
    assert smooth < 0.8 * rough


def test_total_variation_is_that_of_longhand() -> None:
    x = drawn(1, 2, 3, 5, 4)
    longhand = torch.zeros(2, 3, 5, 4)
    for i in range(5):
        for j in range(4):
            down = x[:, :, i + 1, j] - x[:, :, i, j] if i < 4 else torch.zeros(2, 3)
            right = x[:, :, i, j + 1] - x[:, :, i, j] if j < 3 else torch.zeros(2, 3)
            longhand[:, :, i, j] = (down**2 + right**2).sqrt()
    torch.testing.assert_close(variation(x), longhand.mean((1, 2, 3)), atol=1e-4, rtol=0)


def test_pixels_of_another_range_are_found_as_well() -> None:
    bottom = conv()
    x = blobs(2, 8) * 255
    score = Optimise(tv=0.01).run(crossed(bottom, x), Knowledge(known=bottom, pixels=(0.0, 255.0)), 0)
    assert score.value > 0.8
    assert score.shown is not None
    assert 0 <= score.shown[1].min() <= score.shown[1].max() <= 255


def test_one_seed_gives_one_score_and_nothing_of_the_callers_is_touched() -> None:
    bottom = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    before = copy.deepcopy(bottom.state_dict())
    traffic = Traffic(steps=torch.arange(40), activations=drawn(1, 40, 4, 10, 10), inputs=blobs(2, 40))
    state = torch.get_rng_state()
    one, two = (Optimise(steps=3, rows=10).run(traffic, Knowledge(known=bottom), seed) for seed in (3, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.value, one.rows) == (two.value, 10)
    assert bottom.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in bottom.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in bottom.state_dict().items())


def test_what_is_lacking_is_said() -> None:
    with pytest.raises(DataError, match="needs the client's bottom"):
        Optimise().run(crossed(Constant(), blobs(1, 4)), Knowledge(), 0)
    with pytest.raises(DataError, match="give the bottom up to this cut"):
        Optimise().run(crossed(Constant(), drawn(1, 4, 6)), Knowledge(known=linear(6, 5)), 0)
    with pytest.raises(PlanError) as caught:
        Optimise(steps=0, lr=0.0, tv=-1.0, measure="psnr")
    assert len(caught.value.faults) == 4
