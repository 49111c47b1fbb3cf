"""What a score says: the number itself against other ways to get it, and its interval against simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import r2_score, roc_auc_score
from torch import Tensor

from cutlayer.attack.scoring import (
    accuracy,
    auc,
    by_step,
    class_numbers,
    folded,
    latest,
    mse,
    needed,
    r2,
    rarest,
    ssim,
    structure,
    wilson,
)
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_classes(ones: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([ones, zeros]), torch.cat([torch.ones(len(ones)), torch.zeros(len(zeros))]).bool()


def test_the_auc_is_the_share_of_pairs_in_order_and_ties_count_half() -> None:
    for seed in range(20):
        ones, zeros = ((torch.randn(n, generator=drawn(seed + n)) * 2).round() for n in (7, 12))
        pairs = [(a > b) + (a == b) / 2 for a in ones.tolist() for b in zeros.tolist()]
        assert auc("x", *two_classes(ones, zeros)).value == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_the_auc_by_steps_is_the_mean_of_the_areas_of_the_steps_with_both_classes() -> None:
    truth, steps = torch.rand(400, generator=drawn(0)) < 0.1, torch.arange(400).remainder(31)
    scores = (torch.randn(400, generator=drawn(1)) * 3 + truth).round() + 1000 * steps
    areas = [roc_auc_score(truth[at], scores[at]) for at in by_step(steps) if 0 < truth[at].sum() < len(at)]
    assert 10 < len(areas) < 31
    assert auc("x", scores, truth, steps=steps).value == pytest.approx(np.mean(areas), abs=1e-12)


def test_the_interval_is_wilsons_at_the_rows_that_give_delongs_variance() -> None:
    """DeLong et al. 1988, longhand, where neither bound on the number of rows is met."""
    scores, truth = two_classes(torch.randn(80, generator=drawn(2)) * 3 + 0.5, torch.randn(70, generator=drawn(3)))
    wins = (scores[truth][:, None] > scores[~truth]).double()
    area, variance = float(wins.mean()), float(wins.mean(1).var() / 80 + wins.mean(0).var() / 70)
    score = auc("x", scores, truth)
    assert (score.low, score.high) == pytest.approx(wilson(area, area * (1 - area) / variance), abs=1e-9)


FAMILIES = {"equal": (1.0, 1.0), "wide ones": (3.0, 1.0), "wide zeros": (1.0, 3.0)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(5, 60), (30, 30), (100, 20)], ids=str)
def test_the_interval_of_the_auc_holds_the_truth(family: str, sizes: tuple[int, int]) -> None:
    """Gaussian scores: the AUC is Φ(d / √(s₁² + s₀²)). In 1000 draws of each it was 92.4% at least; DeLong's own
    interval holds 0.98 in 29% of the draws of 5 wide ones and 60 zeros."""
    (wide, narrow), runs = FAMILIES[family], 150
    for area in (0.5, 0.8, 0.98):
        shift = norm.ppf(area) * math.hypot(wide, narrow)
        held = 0
        for run in range(runs):
            draws = drawn(run)
            ones = torch.randn(sizes[0], generator=draws) * wide + shift
            score = auc("x", *two_classes(ones, torch.randn(sizes[1], generator=draws) * narrow))
            held += score.low <= area <= score.high
        assert held >= 0.89 * runs, (area, held)


def test_a_row_that_crosses_again_adds_no_certainty() -> None:
    scores, truth = two_classes(torch.randn(40, generator=drawn(4)) + 0.7, torch.randn(60, generator=drawn(5)))
    once = auc("x", scores, truth)
    rows, steps = torch.arange(100).repeat(9), torch.arange(9).repeat_interleave(100)
    again = auc("x", scores.repeat(9), truth.repeat(9), steps=steps, rows=rows)
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high), abs=1e-9)
    assert again.rows == once.rows == 100
    taken_as_new = auc("x", scores.repeat(9), truth.repeat(9), steps=steps)
    assert taken_as_new.high - taken_as_new.low < 0.5 * (once.high - once.low)


def test_complete_separation_is_no_certainty() -> None:
    few = folded(auc("x", *two_classes(torch.full((2,), 2.0), torch.full((90,), 1.0))))
    many = folded(auc("x", *two_classes(torch.full((90,), 1.0), torch.full((90,), 2.0))))
    assert few.value == many.value == few.high == many.high == 1
    assert (few.leaks, many.leaks) == (False, True)
    assert (few.low, many.low) == pytest.approx((0.5, wilson(1, 90)[0]))


@pytest.mark.parametrize("sizes", [(6, 40), (50, 50)], ids=str)
def test_the_leak_auc_of_independent_scores_leaks_in_5_of_100_and_its_value_is_above_its_chance(
    sizes: tuple[int, int],
) -> None:
    ones, zeros = sizes
    runs, leaks, total = 500, 0, 0.0
    for run in range(runs):
        score = folded(auc("x", *two_classes(*torch.split(torch.randn(ones + zeros, generator=drawn(run)), [*sizes]))))
        assert score.chance == 0.5 <= score.low <= score.value <= score.high
        leaks, total = leaks + score.leaks, total + score.value
    assert 0.02 * runs <= leaks <= 0.07 * runs
    expected = 0.5 + math.sqrt(2 / math.pi * (ones + zeros + 1) / (12 * ones * zeros))
    assert total / runs == pytest.approx(expected, abs=0.01)


def test_few_rows_of_a_class_in_each_step_do_not_make_a_leak() -> None:
    """One or two rows of the class in a step, and rows that keep their scores over epochs: both make steps alike."""
    leaks = 0
    for run in range(200):
        draws = drawn(run)
        truth, own = torch.rand(200, generator=draws) < 0.1, torch.randn(200, generator=draws)
        rows = torch.cat([torch.randperm(200, generator=draws) for _ in range(4)])
        steps = torch.arange(800) // 16
        leaks += folded(auc("x", own[rows], truth[rows], steps=steps, rows=rows)).leaks
    assert leaks <= 14


def test_one_row_of_a_class_is_one_observation() -> None:
    score = auc("x", *two_classes(torch.tensor([3.5]), torch.arange(10.0)))
    assert (score.value, score.low, score.high) == pytest.approx((0.4, *wilson(0.4, 1)))


def test_a_folded_interval_is_that_of_the_flipped_scores() -> None:
    scores, truth = two_classes(torch.randn(30, generator=drawn(6)) - 1, torch.randn(30, generator=drawn(7)))
    down, up = folded(auc("x", scores, truth)), auc("x", -scores, truth)
    assert (down.value, down.low, down.high) == pytest.approx((up.value, up.low, up.high))


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(DataError, match="both classes"):
        auc("x", torch.arange(4), torch.tensor([True, True, False, False]), steps=torch.tensor([0, 0, 1, 1]))
    with pytest.raises(DataError, match="nan"):
        auc("x", torch.tensor([0.0, math.nan]), torch.tensor([True, False]))
    assert auc("x", torch.tensor([math.inf, 0.0]), torch.tensor([True, False])).value == 1


def test_accuracy_has_wilsons_interval_and_the_commonest_class_as_chance() -> None:
    labels, guesses = torch.tensor([0] * 30 + [1] * 20), torch.tensor([0] * 33 + [1] * 17)
    score, known = accuracy("x", guesses, labels), binomtest(47, 50).proportion_ci(0.95, "wilson")
    assert (score.value, score.low, score.high) == pytest.approx((0.94, known.low, known.high))
    assert (score.chance, score.rows, score.leaks) == (0.6, 50, True)
    assert not accuracy("x", torch.zeros(50), labels).leaks
    with pytest.raises(DataError, match="no row left"):
        accuracy("x", labels[:0], labels[:0])


def test_r2_is_the_librarys_and_the_mean_row_is_worth_nothing() -> None:
    truth = torch.randn(60, 3, generator=drawn(8))
    made = truth + torch.randn(60, 3, generator=drawn(9)) / 2
    score = r2("x", made, truth, 0)
    assert score.value == pytest.approx(r2_score(truth, made, multioutput="variance_weighted"), abs=1e-6)
    assert score.low < score.value < score.high
    assert score.leaks
    mean = r2("x", truth.mean(0).expand_as(truth), truth, 0)
    assert mean.value == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="all equal"):
        r2("x", made, torch.ones(60, 3), 0)


def test_the_mse_is_in_units_of_the_pixel_range_and_its_chance_is_the_mean_row() -> None:
    truth = torch.rand(50, 1, 4, 4, generator=drawn(10))
    made = truth + 0.1
    score, wide = mse("x", made, truth, 0), mse("x", 2 * made - 1, 2 * truth - 1, 0, (-1, 1))
    assert score.value == pytest.approx(0.01, abs=1e-6)
    assert score.chance == pytest.approx(float(truth.var(0, correction=0).mean()), abs=1e-6)
    assert (wide.value, wide.chance) == pytest.approx((score.value, score.chance), abs=1e-6)
    assert (score.leaks, score.better) == (True, "smaller")
    assert not mse("x", truth.mean(0).expand_as(truth), truth, 0).leaks


def test_the_bootstrap_holds_the_mean_and_is_drawn_by_its_seed() -> None:
    held = 0
    for run in range(40):
        truth = torch.zeros(40, 1)
        score = mse("x", torch.randn(40, 1, generator=drawn(run)), truth, run)
        held += score.low <= 1 <= score.high
    assert held >= 33  # of 40 skewed errors the percentile interval holds it in about 91 of 100
    made = torch.randn(40, 1, generator=drawn(0))
    assert mse("x", made, truth, 3) == mse("x", made, truth, 3) != mse("x", made, truth, 4)


def longhand(x: np.ndarray, y: np.ndarray, size: int, span: float) -> float:
    """Wang et al. 2004, eq. 13 to 16, window by window, about the means rather than by moments."""
    places = np.arange(size) - size // 2
    window = np.exp(-(places[:, None] ** 2 + places**2) / 4.5)
    window /= window.sum()
    c1, c2, found = (0.01 * span) ** 2, (0.03 * span) ** 2, []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            m, n = (window * a).sum(), (window * b).sum()
            s, t, st = ((window * p * q).sum() for p, q in ((a - m, a - m), (b - n, b - n), (a - m, b - n)))
            found.append((2 * m * n + c1) * (2 * st + c2) / ((m * m + n * n + c1) * (s + t + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize(("height", "width", "size"), [(14, 17, 11), (8, 30, 7), (5, 5, 5)])
def test_structural_similarity_is_the_papers_window_by_window(height: int, width: int, size: int) -> None:
    one = torch.rand(3, 2, height, width, generator=drawn(11))
    other = (one + 0.3 * torch.randn(one.shape, generator=drawn(12))).clamp(0, 1)
    found = structure(one, other)
    for n in range(3):
        channels = [longhand(one[n, c].double().numpy(), other[n, c].double().numpy(), size, 1.0) for c in range(2)]
        assert float(found[n]) == pytest.approx(np.mean(channels), abs=1e-9)
    assert torch.allclose(structure(2 * one - 1, 2 * other - 1, (-1, 1)), found, atol=1e-6)


def test_structural_similarity_of_flat_images_is_that_of_their_light() -> None:
    dark, light = (torch.full((1, 1, 12, 12), value) for value in (0.2, 0.6))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(structure(dark, light)) == pytest.approx(expected, abs=1e-6)
    assert float(structure(dark, dark)) == pytest.approx(1)


def test_images_are_scored_against_the_mean_image() -> None:
    truth = torch.rand(30, 1, 12, 12, generator=drawn(13))
    good, flat = ssim("x", truth, truth, 0), ssim("x", truth.mean(0).expand_as(truth), truth, 0)
    assert (good.value, good.low) == pytest.approx((1, 1))
    assert flat.value == pytest.approx(flat.chance)
    assert (good.leaks, flat.leaks) == (True, False)


def test_what_is_missing_is_named_with_what_to_do() -> None:
    bare = Traffic(steps=torch.zeros(3))
    with pytest.raises(DataError, match=r"^norm needs gradients and labels, which the recording lacks: record"):
        needed("norm", bare, "steps", "gradients", "labels")
    with pytest.raises(DataError, match="no row"):
        needed("norm", Traffic(steps=torch.zeros(0)), "steps")


def test_labels_must_be_class_numbers_of_two_classes() -> None:
    assert class_numbers("x", torch.tensor([[1.0], [0.0]])).tolist() == [1, 0]
    for labels in (torch.tensor([0.5, 1.0]), torch.zeros(3, 2), torch.tensor([math.nan])):
        with pytest.raises(DataError, match="class numbers"):
            class_numbers("x", labels)
    assert rarest("x", torch.tensor([2, 2, 7, 5, 5])) == 7
    assert rarest("x", torch.tensor([1, 1, 0, 0])) == 0
    with pytest.raises(DataError, match="one class"):
        rarest("x", torch.ones(4))


def test_each_row_is_taken_as_it_crossed_last() -> None:
    rows = torch.tensor([4, 9, 4, 2, 9, 7])
    traffic = Traffic(steps=torch.arange(6), rows=rows, labels=torch.arange(6))
    assert latest(traffic).steps.tolist() == [2, 3, 4, 5]
    assert latest(Traffic(steps=torch.arange(6))).steps.tolist() == list(range(6))
