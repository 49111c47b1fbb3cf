"""When a run's own scores give an alarm, and how often wrongly."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from cutlayer.errors import PlanError
from cutlayer.observe.thresholds import Rise

ALPHA = 0.001
RUNS, SCORES, BLOCK = 2000, 120, 40


def rise(**options: float) -> Rise:
    return Rise(**({"block": BLOCK, "tolerance": 0.0, "false_alarms": ALPHA} | options))  # type: ignore[arg-type]


def series(kind: str, runs: int = RUNS) -> list[list[float]]:
    """Scores in [0, 1] of honest runs: what they are like never rises from one block to a later score."""
    draws = np.random.default_rng(3)
    if kind == "even":
        found = draws.random((runs, SCORES))
    elif kind == "narrow":
        found = 0.6 + 0.02 * draws.standard_normal((runs, SCORES))
    elif kind == "skewed":
        found = draws.beta(0.5, 4.0, (runs, SCORES))
    elif kind == "few values":
        found = draws.integers(3, size=(runs, SCORES)) / 4
    else:
        found = draws.random((runs, SCORES)) * np.linspace(1, 0.6, SCORES)
    return np.clip(found, 0, 1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["even", "narrow", "skewed", "few values", "falling"])
def test_honest_series_give_no_more_alarms_than_was_stated(kind: str) -> None:
    """2,000 runs at a rate of 5%: 100 are to be expected at most; the binomial's upper end says what is too many."""
    rate = 0.05
    wrong = sum(any(map(rise(false_alarms=rate).add, run)) for run in series(kind))
    assert wrong <= binom.ppf(0.99, RUNS, rate)


def test_what_training_adds_slowly_fits_into_the_tolerance() -> None:
    """Scores that rise by as much as is allowed for over the run, all of it at once after the first block at worst."""
    drift = 0.1 * (np.arange(SCORES) >= BLOCK)
    runs = (0.5 + drift + 0.02 * np.random.default_rng(4).standard_normal((RUNS, SCORES))).tolist()
    wrong = sum(any(map(rise(false_alarms=0.05, tolerance=0.1).add, run)) for run in runs)
    assert wrong <= binom.ppf(0.99, RUNS, 0.05)


def test_half_of_the_rate_is_spent_on_levels_all_together() -> None:
    """The k-th level is the largest of n scores: that more than p of all lie above has the chance (1 − p)ⁿ."""
    rule, spent = rise(), 0.0
    for number in range(1, 200):
        for score in range(BLOCK):
            rule.add(0.9 - 0.004 * number - score / 1e6)
        spent += (1 - rule._share) ** BLOCK
        assert (1 - rule._share) ** BLOCK == pytest.approx(ALPHA / 2 / (number * (number + 1)))
    assert spent < ALPHA / 2


def test_a_rise_is_found_within_a_block() -> None:
    for late in (0, 400):
        rule, draws = rise(tolerance=0.1), torch.Generator().manual_seed(5)
        before = (0.5 + 0.02 * torch.randn(BLOCK + late, generator=draws)).tolist()
        assert not any(map(rule.add, before))
        after = (0.72 + 0.02 * torch.randn(BLOCK, generator=draws)).tolist()
        assert sum(not rule.add(score) for score in after) <= 25


def test_the_level_follows_what_falls_and_nothing_that_rises() -> None:
    rule = rise(block=4, tolerance=0.1)
    limits = []
    for level in (0.8, 0.5, 0.7):
        for _ in range(4):
            rule.add(level)
        limits.append(rule.limit)
    assert limits == pytest.approx([0.9, 0.6, 0.6])


def test_a_rise_to_where_the_run_once_was_is_found() -> None:
    """A defence that works after a while, and is then left out."""
    rule = rise(tolerance=0.1)
    for level in (0.8, 0.7, 0.5):
        assert not any(rule.add(level) for _ in range(BLOCK))
    assert any(rule.add(0.8) for _ in range(BLOCK))


def test_one_score_gives_no_alarm_however_large() -> None:
    rule = rise()
    assert not any(rule.add(0.1) for _ in range(BLOCK))
    assert not rule.add(1.0)
    assert not any(rule.add(0.1) for _ in range(BLOCK))


def test_an_alarm_stays() -> None:
    rule = rise(block=10)
    assert any(rule.add(score) for score in [0.1] * 10 + [0.9] * 200)
    assert rule.add(0.0)
    assert rule.add(math.nan)


def test_numbers_that_are_none_are_not_counted() -> None:
    one, other = rise(), rise()
    for place in range(3 * BLOCK):
        one.add(place % 7 / 10)
        other.add(place % 7 / 10)
        assert not other.add(math.nan)
    assert one.limit == other.limit is not None


def test_there_is_no_limit_before_a_block_is_through_nor_where_no_score_could_lie_above() -> None:
    rule = rise(tolerance=0.1)
    for _ in range(BLOCK):
        assert rule.limit is None
        rule.add(0.95)
    assert rule.limit is None
    assert not any(rule.add(1.0) for _ in range(10 * BLOCK))


@pytest.mark.parametrize("options", [{"block": 0}, {"tolerance": -0.1}, {"tolerance": math.nan}, {"false_alarms": 0.0}])
def test_a_rule_that_means_nothing_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        rise(**options)
