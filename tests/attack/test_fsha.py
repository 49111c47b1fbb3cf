"""Feature-space hijacking: what the client is told, and what its segment becomes by it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attack.insiders import BATCH, CUT, known, linear, run, with_relu
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha, _steepness
from cutlayer.attack.learner import Learner
from cutlayer.attack.pilots import Labelled, critic, decoder, encoder
from cutlayer.attack.traffic import Traffic

STEPS = 150
REPOSITORY = Path(__file__).parents[2]


class Deaf(Fsha):
    """Whose client does not hear what it is told."""

    def answer(self, activations: Tensor, labels: Tensor | None) -> Tensor:
        return torch.zeros_like(super().answer(activations, labels))


@pytest.mark.parametrize("build", [linear, with_relu])
def test_a_hijacked_client_gives_its_inputs_away(build: Callable[[], nn.Module]) -> None:
    """R² of columns that it never told; the mean row scores 0. A client that does not listen gives away less."""
    heard, unheard = (
        attack.score(run(attack, steps=STEPS, build=build, knowledge=known()).traffic) for attack in (Fsha(), Deaf())
    )
    assert heard.leaks
    assert heard.low > max(0.4, unheard.high)


def begun(**options: float) -> Fsha:
    attack = Fsha(**options)  # type: ignore[arg-type]
    attack.begin(known(), torch.randn(BATCH, CUT, generator=torch.Generator().manual_seed(0)), 0)
    return attack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_it_tells_has_the_form_of_what_came(dtype: torch.dtype) -> None:
    z = torch.randn(5, CUT, generator=torch.Generator().manual_seed(1)).to(dtype)
    told = begun().answer(z, None)
    assert (told.shape, told.dtype, told.requires_grad) == (z.shape, dtype, False)


def test_it_tells_the_gradient_of_a_sum_over_the_rows() -> None:
    """Of the discriminator as it was before this step, by differences; rows that come twice count twice."""
    z = torch.randn(3, CUT, generator=torch.Generator().manual_seed(1))
    told, doubled = begun().answer(z, None), begun().answer(torch.cat((z, z)), None)
    assert torch.allclose(doubled, torch.cat((told, told)), atol=1e-6)
    fresh = begun()._begun
    assert fresh is not None
    judge = fresh.critic.network.double()
    for row in range(3):
        for place in range(CUT):
            step = torch.zeros(3, CUT, dtype=torch.float64)
            step[row, place] = 1e-6
            with torch.no_grad():
                slope = (judge(z.double() + step).sum() - judge(z.double() - step).sum()) / 2e-6
            assert float(slope) == pytest.approx(float(told[row, place]), rel=1e-3, abs=1e-5)


def test_going_on_from_what_was_kept_equals_not_stopping() -> None:
    z = torch.randn(4, BATCH, CUT, generator=torch.Generator().manual_seed(1))
    whole, first, second = begun(), begun(), begun()
    for part in z[:2]:
        whole.answer(part, None)
        first.answer(part, None)
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()})
    for part in z[2:]:
        assert torch.equal(whole.answer(part, None), second.answer(part, None))


def test_a_penalty_holds_the_slope_of_the_discriminator_near_one() -> None:
    slopes = []
    for penalty in (0.0, 100.0):
        attack = begun(penalty=penalty)
        z = torch.randn(BATCH, CUT, generator=torch.Generator().manual_seed(1))
        for _ in range(60):
            told = attack.answer(z, None)
        slopes.append(float(told.norm(dim=1).mean()))
    assert slopes[0] > 2
    assert slopes[1] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 4)], ids=["numbers", "a sequence", "maps"])
def test_the_penalty_is_of_rows_and_of_maps_by_channel(shape: tuple[int, ...]) -> None:
    """By hand, of a discriminator whose slope is the same everywhere: Σ w z has the slope w."""
    size = torch.Size(shape).numel()
    line = nn.Linear(size, 1)
    judge = Learner(nn.Sequential(nn.Flatten(), line, nn.Flatten(0)), 1e-3, torch.device("cpu"))
    z = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    slopes = line.weight.detach().view(shape)
    norms = slopes.flatten(1).norm(dim=1) if len(shape) == 3 else slopes.norm()[None]
    found = _steepness(judge, z, z.flip(0), torch.Generator().manual_seed(2))
    assert float(found.detach()) == pytest.approx(float((norms - 1).square().mean()), rel=1e-5)


SHAPES = [
    ((1, 28, 28), (16, 7, 7)),
    ((3, 32, 32), (64, 4, 4)),
    ((28, 28), (8, 14, 14)),
    ((1, 28, 28), (16, 5, 5)),
    ((1, 16, 20), (4, 16, 20)),
    ((3, 9, 9), (4, 1, 1)),
    ((1, 8, 8), (2, 16, 16)),
    ((1, 8, 8), (10,)),
    ((5,), (3,)),
    ((12,), (4, 3)),
    ((2, 6), (3,)),
]


@pytest.mark.parametrize(("row", "cut"), SHAPES)
def test_the_attackers_networks_fit_any_shapes(row: tuple[int, ...], cut: tuple[int, ...]) -> None:
    x, labels = torch.randn(3, *row), torch.tensor([0, 1, 2])
    z = encoder(row, cut, width=4, nonnegative=True)(x)
    assert z.shape == (3, *cut)
    assert bool((z >= 0).all())
    assert decoder(cut, row, width=4)(z).shape == x.shape
    assert critic(cut, width=4, blocks=1)(z).shape == (3,)
    told = Labelled(cut, 3, lambda shape: decoder(shape, row, width=4))
    assert told(z, labels).shape == x.shape
    assert not torch.equal(told(z, labels), told(z, labels.flip(0)))
    assert Labelled(row, 3, lambda shape: critic(shape, width=4, blocks=1))(x, labels).shape == (3,)


@pytest.mark.parametrize("row", [(1, 12, 12), (12, 12)])
def test_rebuilt_pixels_never_leave_their_range(row: tuple[int, ...]) -> None:
    """The range of those that it has, where that is wider than what it was told."""
    x = 200 * torch.rand(100, *row, generator=torch.Generator().manual_seed(3))
    z = 30 * torch.randn(100, CUT, generator=torch.Generator().manual_seed(3))
    attack = Fsha(width=4, measure="mse")
    attack.begin(Knowledge(auxiliary=(x, None), pixels=(0.0, 1.0)), z, 0)
    score = attack.score(Traffic(steps=torch.zeros(100, dtype=torch.int64), activations=z, inputs=x))
    assert score.shown is not None
    assert score.shown[1].shape[1:] == row
    assert float(score.shown[1].min()) == 0
    assert 1 < float(score.shown[1].max()) <= float(x.max())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images_of_mnist_are_rebuilt_with_less_error_than_the_mean_image_has() -> None:
    named = Path(os.environ.get("CUTLAYER_DATA", REPOSITORY / "../shared/data/mnist.npz"))
    if not named.is_file():
        pytest.skip("no MNIST: name a file in CUTLAYER_DATA")
    script = REPOSITORY / "benchmarks/papers/fsha.py"
    ran = subprocess.run(
        [sys.executable, script, "--quick", "--data", named], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
