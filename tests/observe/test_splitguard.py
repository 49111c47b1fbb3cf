"""SplitGuard's score is the paper's, and its policy of averages tells servers apart."""

import math

import pytest
import torch

from cutlayer.observe.splitguard import JUDGED, SplitGuard, Sums, splitguard_score


def test_the_score_is_the_papers() -> None:
    """By hand: F = (-3, 0), R₁ = (1, 0), R₂ = (0, 2). R's mean points to (1, 2), and its norms have the mean 1.5."""
    sums = []
    for vector in ([-3.0, 0.0], [1.0, 0.0], [0.0, 2.0]):
        sums.append(Sums())
        sums[-1].add(torch.tensor([vector]))
    to_fake, between = math.acos(-1 / math.sqrt(5)), math.pi / 2
    s = (to_fake * (3 - 1.5) - between * (2 - 1)) / ((3 - 1.5) + (2 - 1))
    assert splitguard_score(*sums) == pytest.approx((1 / (1 + math.exp(-5 * s))) ** 2)


def fed(*, looks: bool, fakes: int) -> SplitGuard:
    """What a server answers that looks at labels, or does not: nine regular mini-batches to one fake one."""
    guard, draws = SplitGuard(), torch.Generator().manual_seed(4)
    for step in range(10 * fakes):
        fake = step % 10 == 9
        direction = torch.tensor([-3.0, 2.0] if fake and looks else [1.0, 0.5])
        gradient = direction + 0.3 * torch.randn(2, generator=draws)
        if fake:
            guard.fake(gradient)
        else:
            guard.regular(gradient, half=step % 2)
    return guard


def test_a_server_that_looks_at_labels_is_told_from_one_that_does_not() -> None:
    honest, other = fed(looks=True, fakes=40), fed(looks=False, fakes=40)
    assert honest.mean > 0.95
    assert not honest.alarmed
    assert other.mean < 0.5
    assert other.alarmed


def test_nothing_is_concluded_from_few_fakes() -> None:
    assert not fed(looks=False, fakes=JUDGED - 1).alarmed
    assert fed(looks=False, fakes=JUDGED).alarmed


def test_there_is_no_score_before_both_halves_have_a_gradient() -> None:
    guard = SplitGuard()
    assert guard.fake(torch.ones(2)) is None
    guard.regular(torch.ones(2), half=0)
    assert guard.fake(torch.ones(2)) is None
    guard.regular(torch.ones(2), half=1)
    assert guard.fake(torch.ones(2)) is not None


def test_what_is_kept_and_loaded_goes_on_alike() -> None:
    guard, again = fed(looks=True, fakes=12), SplitGuard()
    again.load(guard.tensors())
    assert again.mean == guard.mean
    gradient = torch.tensor([-3.0, 2.0])
    assert again.fake(gradient) == guard.fake(gradient)
    again.load({})
    assert again.fake(gradient) is None
    assert again.mean == 1.0
