"""What releases add up to, against `dp_accounting`, Opacus and closed forms; and which releases of a row count."""

import math
import time
from itertools import product
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, LaplaceDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as losses
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import RDPAccountant
from scipy.stats import binom, norm

from cutlayer.defence import composition
from cutlayer.defence.accountant import Accountant, Release
from cutlayer.defence.composition import ORDERS, Allowance, epsilon, renyi_epsilon, subsampled_epsilon
from cutlayer.defence.defence import Mechanism

DELTA = 1e-5


def gaussian(scale: float, **told: Any) -> Mechanism:
    return Mechanism(kind="gaussian", scale=scale, sensitivity=2.0, **told)


def laplace(scale: float) -> Mechanism:
    return Mechanism(kind="laplace", scale=scale, sensitivity=2.0)


def pure(scale: float, **told: Any) -> Mechanism:
    return Mechanism(kind="pure", scale=scale, sensitivity=1.0, **told)


GAUSSIAN = gaussian(4.0)


def release(rows: int = 4, **told: Any) -> Release:
    places = told.pop("places", None)
    given: dict[str, Any] = {"channel": "activations", "edge": "bottom->top", "mechanism": GAUSSIAN} | told
    return Release(rows=rows, places=None if places is None else np.array(places, np.int64), **given)


def of_rows(*places: int, **told: Any) -> Release:
    return release(len(places), places=places, **told)


def count(accountant: Accountant, channel: Any = "activations", mechanism: Mechanism = GAUSSIAN) -> int:
    counts = accountant.counts(channel)
    assert counts is not None
    return counts.get(mechanism, 0)


def after(*releases: Release) -> Accountant:
    accountant = Accountant()
    for each in releases:
        accountant.add(each)
    return accountant


# ---------------------------------------------------------------------- ε of counts


@pytest.mark.parametrize(("scale", "times"), list(product([0.5, 2.0, 30.0], [1, 7, 1000])))
def test_gaussian_noise_composes_exactly(scale: float, times: int) -> None:
    told = epsilon({gaussian(scale): times}, DELTA)
    assert told == pytest.approx(get_epsilon_gaussian(scale / math.sqrt(times), DELTA), abs=1e-9)
    shift = math.sqrt(times) / scale  # Balle and Wang 2018, theorem 8
    delta = norm.cdf(shift / 2 - told / shift) - math.exp(told + norm.logcdf(-shift / 2 - told / shift))
    assert delta == pytest.approx(DELTA, rel=1e-6)


def test_different_gaussian_noises_compose_exactly() -> None:
    counts = {gaussian(2.0): 3, gaussian(5.0): 10}
    shift = math.sqrt(3 / 4 + 10 / 25)
    assert epsilon(counts, DELTA) == pytest.approx(get_epsilon_gaussian(1 / shift, DELTA), abs=1e-9)


@pytest.mark.parametrize(("scale", "times"), [(3.0, 1), (20.0, 50), (50.0, 2000)])
def test_renyi_dp_equals_both_libraries(scale: float, times: int) -> None:
    ours = renyi_epsilon(frozenset({(gaussian(scale), times)}), DELTA, ORDERS)
    theirs = RdpAccountant(ORDERS).compose(GaussianDpEvent(scale), times).get_epsilon(DELTA)
    opacus = RDPAccountant()
    opacus.history = [(scale, 1.0, times)]
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert ours == pytest.approx(opacus.get_epsilon(DELTA, alphas=list(ORDERS)), abs=1e-9)
    assert epsilon({gaussian(scale): times}, DELTA) <= ours


@pytest.mark.parametrize(("scale", "times"), [(1.0, 1), (1.0, 10), (20.0, 50), (50.0, 500)])
def test_laplace_noise_composes_as_dp_accounting_has_it(scale: float, times: int) -> None:
    renyi = RdpAccountant(ORDERS).compose(LaplaceDpEvent(scale), times).get_epsilon(DELTA)
    assert renyi_epsilon(frozenset({(laplace(scale), times)}), DELTA, ORDERS) == pytest.approx(renyi, abs=1e-9)
    by_losses = losses.from_laplace_mechanism(scale, value_discretization_interval=1 / scale / 20)
    exact = by_losses.self_compose(times).get_epsilon_for_delta(DELTA)
    told = epsilon({laplace(scale): times}, DELTA)
    assert told == pytest.approx(min(exact, renyi, times / scale), abs=1e-9)
    fine = PLDAccountant(value_discretization_interval=1 / scale / 200).compose(LaplaceDpEvent(scale), times)
    assert told == pytest.approx(fine.get_epsilon(DELTA), rel=1e-3)


def pure_delta(told: float, scale: float, times: int) -> float:
    """δ of `times` ε-DP releases at `told` (Kairouz, Oh, Viswanath 2015, arXiv 1311.0776, theorem 3.3, with δ = 0): the
    hockey-stick divergence of as many randomised responses."""
    truth = 1 / (1 + math.exp(-scale))
    return math.fsum(
        max(0.0, binom.pmf(k, times, truth) - math.exp(told) * binom.pmf(k, times, 1 - truth)) for k in range(times + 1)
    )


@pytest.mark.parametrize(("scale", "times"), [(0.5, 1), (0.1, 60), (1.0, 20)])
def test_pure_dp_composes_optimally(scale: float, times: int) -> None:
    told = epsilon({pure(scale): times}, DELTA)
    assert pure_delta(told, scale, times) == pytest.approx(DELTA, rel=2e-3)
    assert told <= times * scale


@pytest.mark.parametrize(("scale", "times"), [(0.5, 1), (0.1, 60), (0.05, 800)])
def test_renyi_dp_of_pure_dp_holds(scale: float, times: int) -> None:
    told = renyi_epsilon(frozenset({(pure(scale), times)}), DELTA, ORDERS)
    assert pure_delta(told, scale, times) <= DELTA


def test_at_delta_zero_pure_dp_adds_up_and_gaussian_noise_bounds_nothing() -> None:
    assert epsilon({pure(0.5): 3, laplace(4.0): 2}, 0.0) == pytest.approx(2.0, abs=1e-12)
    assert epsilon({GAUSSIAN: 1}, 0.0) == math.inf


def test_different_noises_compose_to_no_more_than_by_renyi_dp() -> None:
    counts = {gaussian(10.0): 100, laplace(20.0): 50, pure(0.05): 20}
    fine = PLDAccountant(value_discretization_interval=2e-4)
    fine.compose(GaussianDpEvent(10.0), 100).compose(LaplaceDpEvent(20.0), 50)
    assert fine.get_epsilon(DELTA) < epsilon(counts, DELTA) < renyi_epsilon(frozenset(counts.items()), DELTA)
    del counts[pure(0.05)]
    assert epsilon(counts, DELTA) == pytest.approx(fine.get_epsilon(DELTA), rel=1e-3)


def test_counts_beyond_what_losses_can_be_added_up_for_are_counted_by_renyi_dp() -> None:
    counts = {laplace(100.0): 10**6}
    began = time.process_time()
    assert epsilon(counts, DELTA) == renyi_epsilon(frozenset(counts.items()), DELTA)
    assert time.process_time() - began < 0.5


def test_nothing_tells_nothing_and_no_noise_tells_all() -> None:
    assert epsilon({}, DELTA) == epsilon({GAUSSIAN: 0}, DELTA) == epsilon({pure(0.0): 5}, DELTA) == 0
    for mechanism in (gaussian(0.0), laplace(0.0), pure(math.inf)):
        assert epsilon({mechanism: 1}, DELTA) == math.inf


@pytest.mark.parametrize(("rate", "steps"), [(0.01, 1000), (0.1, 50), (1.0, 5)])
def test_poisson_samples_equal_both_libraries(rate: float, steps: int) -> None:
    told = subsampled_epsilon(noise_multiplier=1.1, rate=rate, steps=steps, delta=DELTA)
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(1.1)), steps)
    assert told == pytest.approx(RdpAccountant(ORDERS).compose(event).get_epsilon(DELTA), abs=1e-9)
    opacus = RDPAccountant()
    opacus.history = [(1.1, rate, steps)]
    whole = [order for order in ORDERS if order == int(order) and order < 64]  # Opacus' series for others is shorter
    ours = RdpAccountant(whole).compose(event).get_epsilon(DELTA)
    assert ours == pytest.approx(opacus.get_epsilon(DELTA, alphas=whole), abs=1e-9)
    assert told <= ours + 1e-12


# ---------------------------------------------------------------------- which releases count


def test_rows_of_a_fixed_bottom_count_by_themselves() -> None:
    accountant = after(of_rows(0, 1), of_rows(2, 3), of_rows(1, 4))
    assert count(accountant) == 2
    accountant.add(of_rows(5, 900))
    assert count(accountant) == 2
    accountant.add(of_rows(1))
    assert count(accountant) == 3


def test_the_tables_of_a_party_have_rows_of_their_own() -> None:
    assert count(after(of_rows(0, 1), of_rows(0, 1, table="held-out"), of_rows(1, table="held-out"))) == 2


def test_releases_of_unknown_rows_may_be_of_any() -> None:
    assert count(after(of_rows(0, 1), release(2), of_rows(1), of_rows(2))) == 3


def test_every_release_of_every_row_counts_once_the_bottom_learns_from_rows() -> None:
    told = [of_rows(0, 1, 2, trained=True), of_rows(3, 4, trained=True), release(7, table="held-out", trained=True)]
    assert count(after(*told)) == 12


def test_what_has_learnt_does_not_forget() -> None:
    """Prediction by a bottom that was trained before, though it is not trained any more."""
    accountant = after(of_rows(0, 1), of_rows(1, 2), of_rows(0, 1, trained=True), of_rows(5, 6, 7))
    assert count(accountant) == 2 + 2 + 3
    assert count(after(of_rows(0, trained=True), of_rows(0, edge="other->top"))) == 1 + 1


def test_a_row_released_as_before_tells_nothing_new() -> None:
    once = pure(1.0, once=True)
    accountant = after(*[of_rows(0, 1, mechanism=once), of_rows(0, 1, mechanism=once), of_rows(1, 2, mechanism=once)])
    assert count(accountant, mechanism=once) == 1
    trained = after(*[of_rows(0, 1, mechanism=once, trained=True), of_rows(1, 2, mechanism=once, trained=True)])
    assert count(trained, mechanism=once) == 3
    assert count(after(release(5, mechanism=once), release(5, mechanism=once)), mechanism=once) == 2


def test_a_step_of_dp_sgd_counts_for_the_rows_that_are_in_it() -> None:
    epochs = [of_rows(*places, channel="weights", edge="bottom") for _ in range(3) for places in ((0, 1), (2, 3))]
    assert count(after(*epochs), "weights") == 3


def test_a_step_that_a_row_shifts_for_all_rows_counts_as_their_number_squared() -> None:
    """n clipped gradients that all turn round move a sum by n sensitivities: μ is n times that of one."""
    accountant = after(of_rows(0, 1, 2, channel="weights", edge="bottom", trained=True))
    assert count(accountant, "weights") == 9
    by_hand = get_epsilon_gaussian(GAUSSIAN.scale / 3, DELTA)
    assert accountant.epsilon("weights", DELTA) == pytest.approx(by_hand, abs=1e-9)
    assert count(after(of_rows(4, 4, channel="weights", edge="bottom")), "weights") == 4
    assert count(after(of_rows(4, 4))) == 2


def test_a_bottom_that_dp_sgd_trains_tells_of_a_row_by_its_weights_and_by_its_activations() -> None:
    step = of_rows(0, 1, channel="weights", edge="bottom", mechanism=gaussian(3.0))
    accountant = after(step, step, *[of_rows(0, 1, through=("weights",))] * 5)
    shift = math.sqrt(2 / 9 + 5 / 16)
    assert accountant.epsilon("activations", DELTA) == pytest.approx(get_epsilon_gaussian(1 / shift, DELTA), abs=1e-9)
    assert accountant.epsilon("weights", DELTA) == epsilon({gaussian(3.0): 2}, DELTA)
    accountant.add(of_rows(0, channel="labels", edge="y->top", mechanism=None))
    assert accountant.epsilon("activations", DELTA) < math.inf == accountant.epsilon("labels", DELTA)
    accountant.add(of_rows(0, through=("labels",)))
    assert accountant.epsilon("activations", DELTA) == math.inf


def test_channels_and_edges_compose_as_they_should() -> None:
    accountant = after(of_rows(0), of_rows(0, edge="other->top"), of_rows(0, channel="labels", mechanism=pure(0.3)))
    assert count(accountant) == 2
    assert accountant.epsilon("labels", DELTA) == pytest.approx(0.3, abs=1e-3)
    assert accountant.epsilon("gradients", DELTA) == 0


def test_a_heuristic_bounds_nothing() -> None:
    accountant = after(of_rows(0), of_rows(0, mechanism=None))
    assert accountant.counts("activations") is None
    assert accountant.epsilon("activations", DELTA) == math.inf


def test_asking_before_a_release_changes_nothing_and_tells_what_will_be() -> None:
    accountant = after(of_rows(0, 1), of_rows(1, 2))
    asked = [
        [of_rows(1, 5)],
        [of_rows(0), of_rows(0), of_rows(0)],
        [release(3), of_rows(1, edge="other->top")],
        [of_rows(0, trained=True), of_rows(2, 3)],
        [of_rows(0, mechanism=None)],
        [of_rows(0, channel="labels")],
    ]
    for releases in asked:
        told = accountant.epsilon_after("activations", *releases, delta=DELTA)
        assert accountant.epsilon("activations", DELTA) == epsilon({GAUSSIAN: 2}, DELTA)
        made = after(of_rows(0, 1), of_rows(1, 2), *releases)
        assert told == made.epsilon("activations", DELTA)


def test_counts_equal_those_of_a_longhand_record() -> None:
    drawn = np.random.default_rng(0)
    accountant, own, every = Accountant(), dict[int, int](), 0
    for _ in range(200):
        places = drawn.choice(60, 5, replace=False)
        learnt = bool(drawn.random() < 0.1)
        every += 5 * learnt
        accountant.add(of_rows(*places, edge="b" if learnt else "a", trained=learnt))
        for place in places if not learnt else ():
            own[place] = own.get(place, 0) + 1
    assert count(accountant) == max(own.values()) + every


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize("mechanism", [gaussian(15.0), laplace(30.0), pure(0.04)], ids=lambda each: each.kind)
def test_a_budget_ends_at_the_last_count_inside(mechanism: Mechanism) -> None:
    allowance, made = Allowance(2.0, DELTA), 0
    while allowance.holds({mechanism: made + 1}):
        made += 1
    assert epsilon({mechanism: made}, DELTA) <= 2.0 < epsilon({mechanism: made + 1}, DELTA)


def test_a_budget_of_several_mechanisms_is_never_exceeded() -> None:
    counts, allowance = {gaussian(20.0): 0, gaussian(9.0): 0, laplace(60.0): 0}, Allowance(1.0, DELTA)
    drawn = np.random.default_rng(1)
    while True:
        chosen = list(counts)[drawn.integers(3)]
        more = counts | {chosen: counts[chosen] + 1}
        if not allowance.holds(more):
            break
        counts = more
    assert epsilon(counts, DELTA) <= 1.0 < epsilon(more, DELTA)


def test_most_answers_are_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    quick = composition._quick

    def counted(*told: Any) -> float:
        asked.append(told)
        return quick(*told)

    monkeypatch.setattr(composition, "_quick", counted)
    allowance = Allowance(3.0, DELTA)
    made = 0
    while allowance.holds({gaussian(200.0): made + 64}):
        made += 64
    assert made > 10_000
    assert len(asked) < 80


@pytest.mark.alone
def test_a_release_costs_less_than_a_millisecond() -> None:
    accountant, allowance = Accountant(), Allowance(8.0, DELTA)
    order = np.random.default_rng(0).permutation(50_000)
    told = [of_rows(*order[start : start + 64]) for start in range(0, 50_000, 64)]
    began = time.process_time()
    for each in told:
        counts = accountant.counts("activations", each)
        assert counts is not None
        assert allowance.holds(counts)
        accountant.add(each)
    assert (time.process_time() - began) / len(told) < 1e-3


# ---------------------------------------------------------------------- for people


def test_lines_say_the_relation_the_sensitivity_the_mechanism_and_the_count() -> None:
    accountant = after(
        *[release(600, trained=True)] * 3, of_rows(0, 1, channel="labels", edge="y->top", mechanism=None)
    )
    assert accountant.lines(DELTA) == [
        f"activations: ε = {epsilon({GAUSSIAN: 1800}, DELTA):.4g} at δ = 1e-05",
        "  bottom->top: Gaussian noise, its deviation 4 times the sensitivity 2 (replace one row): "
        "1,800 releases of a row count, those of all rows, since what makes them learns from rows",
        "labels: ε = ∞",
        "  y->top: heuristic: bounds nothing (ε = ∞)",
    ]


def test_lines_say_what_composes_with_what() -> None:
    step = of_rows(0, channel="weights", edge="bottom", mechanism=gaussian(3.0))
    lines = after(step, of_rows(0, through=("weights",)), of_rows(0, mechanism=pure(0.2, once=True))).lines(DELTA)
    assert lines[0].startswith("activations: ε = ")
    assert lines[0].endswith(" at δ = 1e-05, composed with its weights")
    assert any("ε = 0.2 a release" in line and "each row's first alone" in line for line in lines)
    assert any("released most often" in line for line in lines)
