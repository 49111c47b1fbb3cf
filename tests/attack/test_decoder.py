"""Inversion by a trained decoder: what can be inverted is, what tells nothing is not, and the caller's things stay."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.decoder import AlignedDecoder, Decoder
from cutlayer.attack.rebuilt import r2_of_columns, rebuilt_score
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError, PlanError


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(seed: int, count: int) -> Tensor:
    """Images `[N, 1, 12, 12]` of one bright square each, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, 12, 12)
    for image, (top, left) in zip(images, torch.randint(8, (count, 2), generator=generator).tolist(), strict=True):
        image[:, top : top + 4, left : left + 4] = 1
    return images


def crossed(bottom: nn.Module, x: Tensor, **more: Tensor) -> Traffic:
    with torch.no_grad():
        return Traffic(steps=torch.arange(len(x)), activations=bottom(x), inputs=x, **more)


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(drawn(1, outputs, inputs))
        layer.bias.copy_(drawn(2, outputs))
    return layer


COLUMNS = torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0])


@pytest.mark.parametrize("bottom", [nn.Identity(), linear(6, 6), linear(6, 9)], ids=["identity", "square", "wide"])
def test_tables_behind_an_invertible_linear_bottom_are_read_nearly_exactly(bottom: nn.Module) -> None:
    x, auxiliary = drawn(3, 200, 6) * COLUMNS, drawn(4, 300, 6) * COLUMNS
    known = Decoder(epochs=2).run(crossed(bottom, x), Knowledge(auxiliary=(auxiliary, None), known=bottom), 0)
    aligned = AlignedDecoder(share=0.5, epochs=2).run(crossed(bottom, x), Knowledge(), 0)
    for score in (known, aligned):
        assert score.unit == "R²"
        assert score.value > 0.999
        assert score.leaks
    assert (known.rows, aligned.rows) == (200, 100)


def test_a_bottom_that_keeps_half_of_the_columns_leaks_half_of_them() -> None:
    """R² is the mean over columns, so what their size is does not matter."""
    bottom = linear(6, 3)
    with torch.no_grad():
        bottom.weight.copy_(torch.eye(6)[:3])
    knowledge = Knowledge(auxiliary=(drawn(4, 2000, 6) * COLUMNS, None), known=bottom)
    score = Decoder(epochs=1).run(crossed(bottom, drawn(3, 500, 6) * COLUMNS), knowledge, 0)
    assert score.value == pytest.approx(0.5, abs=0.02)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 4)


@pytest.mark.parametrize("x", [drawn(3, 200, 6), blobs(3, 200)], ids=["tables", "images"])
def test_a_constant_bottom_gives_chance(x: Tensor) -> None:
    knowledge = Knowledge(auxiliary=(x.roll(1, 0)[:100], None), known=Constant())
    traffic = crossed(Constant(), x)
    for score in (Decoder(epochs=5).run(traffic, knowledge, 0), AlignedDecoder(share=0.5).run(traffic, knowledge, 0)):
        assert not score.leaks
        assert score.value <= score.chance + 0.02


def test_images_behind_a_convolution_are_rebuilt() -> None:
    torch.manual_seed(0)
    bottom = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU())
    knowledge = Knowledge(auxiliary=(blobs(1, 600), None), known=bottom)
    score = Decoder(epochs=15, width=32).run(crossed(bottom, blobs(2, 100)), knowledge, 0)
    assert score.unit == "SSIM"
    assert score.value > 0.8 > score.chance
    assert score.shown is not None
    assert score.shown[0].shape == score.shown[1].shape == (16, 1, 12, 12)


def test_images_behind_flat_activations_have_their_size_and_range() -> None:
    x = torch.rand(80, 3, 13, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    traffic = crossed(nn.Sequential(nn.Flatten(), linear(780, 10)), x)
    score = AlignedDecoder(epochs=1, width=16, share=0.5).run(traffic, Knowledge(pixels=(-1.0, 1.0)), 0)
    assert score.shown is not None
    assert score.shown[1].shape == (16, 3, 13, 20)
    assert score.shown[1].abs().max() <= 1


def test_rows_that_the_attacker_knows_are_not_scored_whenever_they_crossed() -> None:
    """Rows of noise behind activations of noise: only what was seen before could be told."""
    rows = torch.arange(100).repeat(5)
    traffic = Traffic(
        steps=torch.arange(500), rows=rows, activations=drawn(1, 100, 40)[rows], inputs=drawn(2, 100, 3)[rows]
    )
    score = AlignedDecoder(share=0.5, epochs=1).run(traffic, Knowledge(), 0)
    assert score.rows == 50
    assert not score.leaks


def test_one_seed_gives_one_score_and_nothing_of_the_callers_is_touched() -> None:
    bottom = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(bottom.state_dict())
    traffic = Traffic(steps=torch.arange(40), activations=drawn(1, 40, 4, 10, 10), inputs=blobs(2, 40))
    knowledge = Knowledge(auxiliary=(blobs(1, 60), None), known=bottom)
    state = torch.get_rng_state()
    one, two, other = (Decoder(epochs=1, width=16).run(traffic, knowledge, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.value == two.value != other.value
    assert bottom.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in bottom.state_dict().items())


def test_r2_of_columns_is_that_of_longhand_and_its_interval_holds_it() -> None:
    x, guess = drawn(1, 60, 3), drawn(1, 60, 3) + 0.5 * drawn(2, 60, 3)
    longhand = [1 - float(((x - guess)[:, j] ** 2).sum() / ((x[:, j] - x[:, j].mean()) ** 2).sum()) for j in range(3)]
    score = r2_of_columns("any", guess, x, 0)
    assert score.value == pytest.approx(sum(longhand) / 3, abs=1e-6)
    assert score.low < score.value < score.high
    assert r2_of_columns("any", x.mean(0).expand_as(x), x, 0).value == pytest.approx(0, abs=1e-6)


def test_no_constant_image_beats_chance() -> None:
    """The median image has sharper edges than the mean, which SSIM likes: here it is most of the images."""
    x = blobs(1, 300)
    x[:180] = x[0]
    for guess in (x.mean(0), x.median(0).values):
        assert not rebuilt_score("any", x, guess.expand_as(x), knowledge=Knowledge(), seed=0).leaks


def test_what_is_lacking_is_said() -> None:
    x = drawn(1, 20, 6)
    traffic = crossed(linear(6, 6), x)
    with pytest.raises(DataError, match="auxiliary rows and the client's bottom"):
        Decoder().run(traffic, Knowledge(), 0)
    with pytest.raises(DataError, match="needs inputs"):
        AlignedDecoder().run(Traffic(steps=traffic.steps, activations=x), Knowledge(), 0)
    with pytest.raises(DataError, match="give the bottom up to this cut"):
        Decoder().run(traffic, Knowledge(auxiliary=(x, None), known=linear(6, 5)), 0)
    with pytest.raises(DataError, match="diverged"):
        AlignedDecoder(share=0.5).run(crossed(nn.Identity(), x * float("nan")), Knowledge(), 0)
    with pytest.raises(PlanError) as caught:
        AlignedDecoder(share=1.0, epochs=-1, lr=0.0)
    assert len(caught.value.faults) == 3
