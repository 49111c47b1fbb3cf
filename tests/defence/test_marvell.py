"""Marvell: the program is solved, the bound holds, and what is drawn is what was solved.

AUCs are of the population: a score of a Gaussian gradient is a quadratic form, and so is its difference between a row
of class 1 and one of class 0; P(difference > 0) comes of its characteristic function (Gil-Pelaez 1951).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm

from cutlayer.defence.defence import Context, State
from cutlayer.defence.marvell import Classes, Marvell, Noise, best_noise, most_auc, sum_kl
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape

SMALL_TIMES = np.exp(np.linspace(math.log(1e-6), math.log(1e4), 801))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """curve · x² + slope · x + across · |y|² of a gradient with x along the line and y across it."""

    curve: float = 0.0
    slope: float = 0.0
    across: float = 0.0

    def of(self, mean: float, along: float, across: float, dimensions: int) -> tuple[NDArray[np.float64], int]:
        """Of x from N(mean, along), y from N(0, across I): (A, B, C, E) of A + B n + C n² + E m for n from N(0, 1), m
        from a chi-square with as many degrees as the second result."""
        a = self.curve * mean**2 + self.slope * mean
        b = (2 * self.curve * mean + self.slope) * math.sqrt(along)
        return np.array([a, b, self.curve * along, self.across * across]), dimensions - 1


def auc(score: Score, classes: Classes, noise: Noise, mean_0: float) -> float:
    """P(score of class 1 > score of class 0), of which the means along the line are `mean_0` and that + √gap."""
    mean_1 = mean_0 + math.sqrt(classes.gap)
    widths_0 = classes.spread_0 + noise.along_0, classes.spread_0 + noise.across_0
    widths_1 = classes.spread_1 + noise.along_1, classes.spread_1 + noise.across_1
    terms_0, degrees = score.of(mean_0, *widths_0, classes.dimensions)
    terms_1, _ = score.of(mean_1, *widths_1, classes.dimensions)
    size = math.sqrt(sum(float(t[1:3] @ (t[1:3] * (1, 2)) + 2 * degrees * t[3] ** 2) for t in (terms_0, terms_1)))
    times = SMALL_TIMES / size
    logarithm = _characteristic(terms_1, degrees, times) + _characteristic(-terms_0, degrees, times)
    return float(0.5 + np.trapezoid(np.exp(logarithm).imag, np.log(SMALL_TIMES)) / math.pi)


def _characteristic(terms: NDArray[np.float64], degrees: int, t: NDArray[np.float64]) -> NDArray[np.complex128]:
    a, b, c, e = terms
    bent = 1 - 2j * t * c
    logarithm: NDArray[np.complex128] = (
        1j * t * a - (t * b) ** 2 / (2 * bent) - np.log(bent) / 2 - degrees / 2 * np.log(1 - 2j * t * e)
    )
    return logarithm


def likelihood_ratio(classes: Classes, noise: Noise, mean_0: float) -> Score:
    """The best score there is (Neyman and Pearson): no other one has a larger AUC."""
    a, b = classes.spread_0 + noise.along_0, classes.spread_1 + noise.along_1
    c, e = classes.spread_0 + noise.across_0, classes.spread_1 + noise.across_1
    mean_1 = mean_0 + math.sqrt(classes.gap)
    return Score(curve=(1 / a - 1 / b) / 2, slope=mean_1 / b - mean_0 / a, across=(1 / c - 1 / e) / 2)


def drawn(chance: np.random.Generator) -> Classes:
    """Two classes whose spreads and gap differ by orders of magnitude."""
    dimensions = int(chance.choice([2, 3, 8, 64, 512]))
    spread = 10 ** chance.uniform(-2, 1) / dimensions
    return Classes(
        gap=10 ** chance.uniform(-1.5, 1),
        spread_0=spread,
        spread_1=spread * 10 ** chance.uniform(-0.5, 0.5),
        share=10 ** chance.uniform(-2, -0.01),
        dimensions=dimensions,
    )


def test_no_score_of_a_thousand_random_cases_exceeds_the_bound() -> None:
    chance = np.random.default_rng(1)
    cases, nearest = 0, 0.0
    while cases < 1000:
        classes = drawn(chance)
        noise = best_noise(classes, classes.gap * 10 ** chance.uniform(-1, 1.5))
        epsilon = sum_kl(classes, noise)
        if epsilon >= 4:
            continue
        cases += 1
        mean_0 = chance.uniform(-2, 2) * math.sqrt(classes.gap)
        scores = Score(slope=1), Score(curve=1, across=1), likelihood_ratio(classes, noise, mean_0)
        leaks = [auc(score, classes, noise, mean_0) for score in scores]
        assert max(leaks + [1 - leak for leak in leaks]) <= most_auc(epsilon) + 1e-9, (classes, noise)
        nearest = max(nearest, (leaks[2] - 0.5) / (most_auc(epsilon) - 0.5))
    assert nearest > 0.75, "the cases come close to the bound, or they prove little"


def test_the_population_auc_is_the_closed_form_on_the_line_and_that_of_samples_elsewhere() -> None:
    chance = np.random.default_rng(2)
    for _ in range(10):
        classes = drawn(chance)
        noise = best_noise(classes, classes.gap)
        a, b = classes.spread_0 + noise.along_0, classes.spread_1 + noise.along_1
        closed = norm.cdf(math.sqrt(classes.gap / (a + b)))
        assert auc(Score(slope=1), classes, noise, 0.3) == pytest.approx(closed, abs=1e-5)
        widths = (a, classes.spread_0 + noise.across_0), (b, classes.spread_1 + noise.across_1)
        for score in (Score(curve=1, across=1), likelihood_ratio(classes, noise, 0.3)):
            told = []
            for mean, (along, across) in zip((0.3, 0.3 + math.sqrt(classes.gap)), widths, strict=True):
                x = mean + math.sqrt(along) * chance.standard_normal(20_000)
                y = across * chance.chisquare(classes.dimensions - 1, 20_000)
                told.append(score.curve * x**2 + score.slope * x + score.across * y)
            assert auc(score, classes, noise, 0.3) == pytest.approx(float((told[1] > told[0]).mean()), abs=0.02)


def test_sum_kl_is_that_of_the_two_gaussians() -> None:
    chance = np.random.default_rng(3)
    for _ in range(20):
        classes = Classes(gap=chance.random(), spread_0=0.3, spread_1=0.7, share=0.2, dimensions=4)
        noise = Noise(along_0=chance.random(), across_0=0.1, along_1=chance.random(), across_1=0.05)
        line = np.array([math.sqrt(classes.gap), 0, 0, 0])
        zero = np.diag([0.3 + noise.along_0] + 3 * [0.3 + noise.across_0])
        one = np.diag([0.7 + noise.along_1] + 3 * [0.7 + noise.across_1])
        both = _kl(line, zero, one) + _kl(line, one, zero)
        assert sum_kl(classes, noise) == pytest.approx(both, rel=1e-12)


def _kl(line: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    inverse = np.linalg.inv(other)
    logarithm = math.log(np.linalg.det(other) / np.linalg.det(one))
    return float(np.trace(inverse @ one) - len(line) + line @ inverse @ line + logarithm) / 2


def test_the_solution_spends_the_power_and_no_more_and_keeps_to_the_order() -> None:
    chance = np.random.default_rng(4)
    for _ in range(500):
        classes = drawn(chance)
        power = classes.gap * 10 ** chance.uniform(-3, 3)
        noise = best_noise(classes, power)
        assert noise.power(classes) == pytest.approx(power, rel=1e-9)
        assert noise.along_0 >= noise.across_0 >= 0
        assert noise.along_1 >= noise.across_1 >= 0


def test_no_search_of_the_four_parameters_finds_better() -> None:
    chance = np.random.default_rng(5)
    for _ in range(100):
        classes = drawn(chance)
        power = classes.gap * 10 ** chance.uniform(-1.5, 1.5)
        ours = sum_kl(classes, best_noise(classes, power))
        assert ours <= _searched(classes, power, chance) * (1 + 1e-7) + 1e-12, (classes, power)


def _searched(classes: Classes, power: float, chance: np.random.Generator) -> float:
    """The best of a local search by SLSQP from a random start, and of 200 random noises of all the power."""
    p, across = classes.share, classes.dimensions - 1
    prices = np.array([1 - p, (1 - p) * across, p, p * across]) / power

    def cost(shares: NDArray[np.float64]) -> float:
        """`shares`: of the power, for each of the four."""
        return sum_kl(classes, Noise(**dict(zip(Noise.__slots__, np.maximum(shares, 0) / prices, strict=True))))

    def ordered(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        values = shares / prices / power
        return np.array([values[0] - values[1], values[2] - values[3], 1 - shares.sum()])

    draws = chance.exponential(size=(200, 4))
    draws /= draws.sum(1, keepdims=True)
    found = minimize(
        lambda shares: math.log(cost(shares) + 1e-12),
        draws[0],
        method="SLSQP",
        bounds=[(0, 1)] * 4,
        constraints=[{"type": "ineq", "fun": ordered}],
        options={"maxiter": 100, "ftol": 1e-10},
    )
    allowed = [draw for draw in draws if ordered(draw)[:2].min() >= 0]
    if ordered(found.x).min() >= -1e-9:
        allowed.append(found.x / max(found.x.sum(), 1))
    return min(map(cost, allowed), default=math.inf)


def test_more_power_leaves_less_to_tell() -> None:
    chance = np.random.default_rng(6)
    for _ in range(50):
        classes = drawn(chance)
        told = [sum_kl(classes, best_noise(classes, classes.gap * s)) for s in (0, 0.01, 0.1, 0.5, 1, 2, 4, 8, 100)]
        assert all(more > less for more, less in itertools.pairwise(told))


def test_classes_change_places_with_their_noise() -> None:
    classes = Classes(gap=1.0, spread_0=0.5, spread_1=0.1, share=0.2, dimensions=8)
    assert best_noise(classes, 2.0) == best_noise(classes.swapped(), 2.0).swapped()


@pytest.mark.parametrize(("spread_0", "spread_1"), [(0.0, 0.0), (0.0, 0.3), (0.3, 0.0), (0.3, 0.3)])
@pytest.mark.parametrize("dimensions", [1, 2, 64])
def test_classes_without_spread_have_a_solution_too(spread_0: float, spread_1: float, dimensions: int) -> None:
    classes = Classes(gap=1.0, spread_0=spread_0, spread_1=spread_1, share=0.1, dimensions=dimensions)
    noise = best_noise(classes, 4.0)
    assert noise.power(classes) == pytest.approx(4.0)
    assert math.isfinite(sum_kl(classes, noise))
    assert (sum_kl(classes, Noise()) == math.inf) == (0.0 in (spread_0, spread_1))


def test_the_bound_is_the_paper_s() -> None:
    assert [most_auc(0.0), most_auc(4.0), most_auc(1.0), most_auc(math.inf)] == [0.5, 1.0, 0.875, 1.0]


# ------------------------------------------------------------------ as a defence


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(labels: torch.Tensor | None, classes: int = 2, seed: int = 0) -> Context:
    return Context(generator=seeded(seed), labels=labels, classes=classes)


def batch(ones: int, zeros: int, shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients `[B, 6]` of rows of both classes, whose means and spreads differ."""
    generator = seeded(9)
    one = torch.randn(ones, 6, dtype=torch.float64, generator=generator) * 0.3 + shift
    zero = torch.randn(zeros, 6, dtype=torch.float64, generator=generator) * 0.1
    return torch.cat((one, zero)), torch.cat((torch.ones(ones), torch.zeros(zeros))).long()


def fresh(s: float = 4.0) -> tuple[Marvell, State]:
    defence = Marvell(s=s)
    return defence, defence.init(TensorShape("float64", (8, 6)), seeded(0))


def test_what_is_drawn_has_the_covariance_that_was_solved() -> None:
    gradients, labels = batch(10, 30, shift=0.2)
    copies, told = gradients.repeat(1000, 1), labels.repeat(1000)
    s = 1.0
    defence, state = fresh(s)
    noise = defence.release(copies, context(told), state) - copies
    means = [gradients[labels == label].mean(0) for label in (0, 1)]
    spreads = [gradients[labels == label].var(0, correction=0).mean() for label in (0, 1)]
    line = means[1] - means[0]
    gap = float(line.square().sum())
    classes = Classes(gap=gap, spread_0=float(spreads[0]), spread_1=float(spreads[1]), share=0.25, dimensions=6)
    solved = best_noise(classes, s * gap)
    along = torch.outer(line, line) / gap
    for label, (one, two) in enumerate(((solved.along_0, solved.across_0), (solved.along_1, solved.across_1))):
        drawn_rows = noise[told == label]
        due = one * along + two * (torch.eye(6, dtype=torch.float64) - along)
        found = drawn_rows.T @ drawn_rows / len(drawn_rows)
        torch.testing.assert_close(found, due, rtol=0, atol=0.05 * one)
        assert float(drawn_rows.mean(0).abs().max()) < 5 * math.sqrt(one / len(drawn_rows))
    assert float(noise.square().sum(1).mean()) == pytest.approx(s * gap, rel=0.03)
    assert solved.across_0 > 0.2 * solved.along_0, "the narrower class is widened across the line"


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_class_get_the_noise_of_the_last_batch_with_both(label: int) -> None:
    defence, state = fresh()
    gradients, labels = batch(20, 20)
    alike, told = gradients[labels == label], labels[labels == label]
    bare = defence.release(alike, context(told), state)
    assert torch.equal(bare, torch.zeros_like(alike)), "nothing is known yet, and nothing is told"
    defence.release(gradients, context(labels), state)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    noise = defence.release(alike, context(told, seed=5), state) - alike
    assert float(noise.square().sum(1).mean()) > float(gradients.mean(0).square().sum())
    assert all(torch.equal(kept[name], state[name]) for name in kept)


def test_labels_may_be_class_numbers_or_the_floats_of_a_binary_loss() -> None:
    gradients, labels = batch(4, 4)
    plain = fresh()[0].release(gradients, context(labels), fresh()[1])
    floats = fresh()[0].release(gradients, context(labels.float()[:, None], classes=0), fresh()[1])
    assert torch.equal(plain, floats)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(torch.tensor([0, 1, 2]), 3), (torch.tensor([0, 1, 1]), 10), (torch.tensor([0.2, 0.7, 1]), 0)],
)
def test_what_are_no_two_classes_is_refused_with_the_mend(labels: torch.Tensor, classes: int) -> None:
    defence, state = fresh()
    with pytest.raises(PlanError, match="say max_norm or isotropic instead"):
        defence.release(torch.ones(3, 6), context(labels, classes), state)


def test_without_labels_it_is_refused() -> None:
    defence, state = fresh()
    with pytest.raises(PlanError, match="needs the labels"):
        defence.release(torch.ones(3, 6), context(None), state)
