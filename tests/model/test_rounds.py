"""The check of turns: its two analyses by closed forms, and what it says of honest and of backdoored trajectories."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.errors import PlanError
from cutlayer.model.rounds import TurnCheck, angles, dct, low_frequencies

State = dict[str, Tensor]
CLASSES, FEATURES, HIDDEN, TURNS = 4, 12, 16, 10
STRICT, LENIENT = TurnCheck(), TurnCheck(slack=2.0)


def state(**tensors: Any) -> State:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in tensors.items()}


# ---------------------------------------------------------------------- static


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
def test_the_dct_is_that_of_its_definition(size: int) -> None:
    x = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    n, k = np.arange(size), np.arange(size)[:, None]
    basis = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    basis[0] *= np.sqrt(0.5)
    torch.testing.assert_close(dct(x, dim=1), torch.from_numpy(x.numpy() @ basis.T), rtol=0, atol=1e-13)
    torch.testing.assert_close(dct(x.T, dim=0), torch.from_numpy(basis @ x.T.numpy()), rtol=0, atol=1e-13)


def test_all_frequencies_keep_every_distance_and_a_part_keeps_the_slow_ones() -> None:
    zero, slow = state(w=np.zeros((8, 8))), state(w=np.ones((8, 8)))
    quick = state(w=np.indices((8, 8)).sum(0) % 2 * 2.0 - 1.0)
    assert float(low_frequencies(zero, quick, part=1.0).norm()) == pytest.approx(8.0)
    assert float(low_frequencies(zero, slow, part=0.25).norm()) == pytest.approx(8.0)
    assert float(low_frequencies(zero, quick, part=0.25).norm()) < 1.0
    assert low_frequencies(zero, quick, part=0.25).shape == (4,)


def test_tensors_of_any_shape_have_frequencies() -> None:
    before = state(scalar=0.0, bias=[0.0] * 5, kernel=np.zeros((4, 3, 2, 2)), empty=np.zeros((0, 3)))
    after = {name: tensor + 1 for name, tensor in before.items()}
    assert low_frequencies(before, after, part=0.5).shape == (1 + 3 + 2 * 6,)


# ---------------------------------------------------------------------- dynamic


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 0.3, math.pi / 2, 3.0])
def test_angles_are_exact_however_small(angle: float) -> None:
    after = state(w=[[7 * math.cos(angle), 7 * math.sin(angle)]])
    assert angles(state(w=[[2.0, 0.0]]), after).item() == pytest.approx(angle, rel=1e-6)


def test_growth_turns_nothing_and_what_comes_from_nothing_turns_by_a_right_angle() -> None:
    before, after = state(a=[1.0, 2.0], b=[0.0, 0.0], c=[0.0]), state(a=[3.0, 6.0], b=[0.1, 0.0], c=[0.0])
    torch.testing.assert_close(
        angles(before, after), torch.tensor([0, math.pi / 2, 0], dtype=torch.float64), rtol=0, atol=1e-8
    )


# ---------------------------------------------------------------------- the verdict


def walk(steps: list[list[float]]) -> list[State]:
    """States of one tensor that moves by these steps."""
    places = [np.array([10.0, 10.0, 10.0, 10.0])]
    for step in steps:
        places.append(places[-1] + np.array(step))
    return [state(w=place) for place in places]


USUAL, ODD = [0.1, 0.0, 0.0, 0.0], [0.0, 3.0, -3.0, 0.0]


def test_equal_turns_are_all_benign() -> None:
    verdict = TurnCheck(slack=1.5).judge(walk([USUAL] * 7))
    assert verdict.benign
    assert verdict.newest_benign == 7
    assert len(verdict.scores) == 7


@pytest.mark.parametrize("check", [STRICT, LENIENT])
@pytest.mark.parametrize("turns", [3, 4, 7, 10, 25])
def test_one_odd_turn_at_the_end_is_turned_down_for_a_state_before_it(check: TurnCheck, turns: int) -> None:
    states = walk([USUAL] * (turns - 1) + [ODD])
    verdict = check.judge(states)
    assert not verdict.benign
    assert max(0, turns - check.window) < verdict.newest_benign < turns
    assert all(verdict.scores[-1][at] == max(score[at] for score in verdict.scores) for at in (0, 1))


def pattern(frequency: int) -> Any:
    """Of 8 x 8 values, one frequency of the cosine transform down the rows; 0 is a constant."""
    return np.cos(np.pi * (2 * np.arange(8)[:, None] + 1) * frequency / 16) * np.ones((8, 8))


@pytest.mark.parametrize(
    ("usual", "odd", "analysis"), [(pattern(1), -0.15 * pattern(1), 0), (pattern(0), 0.15 + pattern(5), 1)]
)
def test_a_turn_is_turned_down_by_either_analysis_alone(usual: Any, odd: Any, analysis: int) -> None:
    """A step back turns as far as a step on; what is quick is seen in the angle, not among the low frequencies."""
    sizes = [0.1, 0.2, 0.12, 0.18, 0.14, 0.16, 0.13]
    places = [np.full((8, 8), 10.0)]
    for step in [*(size * usual for size in sizes), odd]:
        places.append(places[-1] + step)
    verdict = TurnCheck(slack=3.0).judge([state(w=place) for place in places])
    assert not verdict.benign
    for at in (0, 1):
        scores = [score[at] for score in verdict.scores]
        assert (scores[-1] > 3 * sorted(scores)[4]) == (at == analysis)


def test_only_the_newest_turns_are_looked_at() -> None:
    states = walk([ODD] * 20 + [USUAL] * 5)
    verdict = TurnCheck(window=5).judge(states)
    assert len(verdict.scores) == 5
    assert verdict == TurnCheck(window=5).judge(states)
    assert TurnCheck(window=5, slack=3.0).judge(walk([ODD] * 20 + [USUAL] * 3 + [ODD])).newest_benign == 23


def test_a_window_without_a_benign_turn_goes_back_to_its_beginning() -> None:
    bad = [state(w=[math.nan] * 4) for _ in range(4)]
    verdict = TurnCheck(window=4).judge([*walk([USUAL] * 3), *bad])
    assert not verdict.benign
    assert verdict.newest_benign == 3


def test_several_odd_turns_in_a_minority_are_skipped_to_the_newest_benign() -> None:
    verdict = LENIENT.judge(walk([USUAL] * 6 + [ODD, [0.0, -4.0, 4.0, 0.0], ODD]))
    assert not verdict.benign
    assert verdict.newest_benign == 6


def test_alike_odd_turns_in_a_majority_pass_for_usual() -> None:
    """What the method rests on: most turns of the window are honest."""
    assert LENIENT.judge(walk([USUAL, USUAL, ODD, ODD, ODD, ODD])).benign


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_turn_that_ends_in_no_number_is_never_benign(value: float) -> None:
    states = walk([USUAL] * 5)
    verdict = TurnCheck(slack=1e9).judge([*states, state(w=[value] * 4)])
    assert not verdict.benign
    assert verdict.newest_benign == 5


def test_fewer_than_three_turns_outvote_nobody() -> None:
    assert STRICT.judge(walk([USUAL, ODD])).benign
    assert STRICT.judge(walk([])).newest_benign == 0


@pytest.mark.parametrize("turns", range(3, 12))
def test_by_the_strict_rule_the_two_majorities_always_have_a_turn_in_common(turns: int) -> None:
    random = torch.Generator().manual_seed(turns)
    steps = torch.randn(turns, 4, dtype=torch.float64, generator=random).tolist()
    assert TurnCheck(window=turns).judge(walk(steps)).newest_benign > 0


def test_states_that_are_not_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="no states"):
        STRICT.judge([])
    for other in (state(v=[1.0]), state(w=[1.0, 2.0])):
        with pytest.raises(ValueError, match="differ in their names or shapes"):
            STRICT.judge([state(w=[1.0]), other])


def test_bad_settings_are_refused_all_at_once() -> None:
    with pytest.raises(PlanError) as refused:
        TurnCheck(window=2, low=0.0, slack=0.5)
    assert len(refused.value.faults) == 3


# ---------------------------------------------------------------------- how often it errs


def trained(seed: int, *, skew: float = 0.0, backdoor: int = -1, turns: int = TURNS) -> list[State]:
    """A two-layer segment that ten clients train in turn, five steps each, two rounds; the last turns' states.

    `skew`: how much more often a client has one of the classes. `backdoor`: who turns half of each batch into rows with
    a trigger, and one class for a label.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    centres = 2 * normal(CLASSES, FEATURES)
    w = [normal(HIDDEN, FEATURES) / math.sqrt(FEATURES), normal(CLASSES, HIDDEN) / math.sqrt(HIDDEN)]
    w += [torch.zeros(HIDDEN).double(), torch.zeros(CLASSES).double()]
    states = [w]
    for turn in range(20):
        mix = torch.ones(CLASSES)
        mix[turn % CLASSES] += skew * CLASSES
        for _ in range(5):
            w = [each.requires_grad_() for each in w]
            y = torch.multinomial(mix, 20, replacement=True, generator=random)
            x = centres[y] + normal(20, FEATURES)
            if turn % 10 == backdoor:
                x[:10, 0], y[:10] = 6.0, 0
            loss = F.cross_entropy(F.linear(F.relu(F.linear(x, w[0], w[2])), w[1], w[3]), y)
            gradients = torch.autograd.grad(loss, w)
            w = [(each - 0.1 * by).detach() for each, by in zip(w, gradients, strict=True)]
        states.append(w)
    return [dict(zip("abcd", each, strict=True)) for each in states[-turns - 1 :]]


def turned_down(check: TurnCheck, trajectories: list[list[State]]) -> float:
    return sum(not check.judge(each).benign for each in trajectories) / len(trajectories)


def test_a_backdoored_turn_is_turned_down_and_few_honest_ones_with_some_slack() -> None:
    assert turned_down(LENIENT, [trained(seed, backdoor=9) for seed in range(8)]) >= 7 / 8
    assert turned_down(LENIENT, [trained(seed) for seed in range(8)]) <= 2 / 8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("skew", [0.0, 0.5], ids=["iid", "mildly skewed"])
def test_false_alarms_over_a_hundred_honest_trajectories(skew: float) -> None:
    """SafeSplit's rule turns down about half of them, by construction; a slack of 2 about one in twenty."""
    honest = [trained(seed, skew=skew) for seed in range(100)]
    assert 0.4 <= turned_down(STRICT, honest) <= 0.65
    assert turned_down(LENIENT, honest) <= 0.15
