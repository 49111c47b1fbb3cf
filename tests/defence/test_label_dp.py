"""Randomised response on labels."""

import math

import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats
from torch import Tensor

from cutlayer.defence.defence import Context, Mechanism
from cutlayer.defence.label_dp import LabelDp
from cutlayer.errors import DataError, PlanError
from cutlayer.plan.tensors import TensorShape


def keys(count: int, seed: int = 0) -> Tensor:
    return torch.randint(2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def answers(labels: Tensor, row_keys: Tensor | None, epsilon: float = 1.0, classes: int = 0) -> Tensor:
    context = Context(generator=torch.Generator(), row_keys=row_keys, classes=classes)
    return LabelDp(epsilon=epsilon).release(labels, context, {})


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_answers_have_the_odds_of_the_formula(classes: int, epsilon: float) -> None:
    for label in range(classes):
        given = answers(torch.full((20_000,), label), keys(20_000, label), epsilon, classes)
        counts = torch.bincount(given, minlength=classes)
        odds = torch.ones(classes, dtype=torch.float64)
        odds[label] = math.exp(epsilon)
        assert stats.chisquare(counts.numpy(), (20_000 * odds / odds.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_epsilon_is_dp_accountings_own(epsilon: float) -> None:
    """It counts a label drawn evenly among all k with probability p, which is another label with p·(k − 1)/k."""
    classes, flip = 10, LabelDp(epsilon=epsilon)._threshold(10) / 2**64
    law = pld.from_randomized_response(float(flip) * classes / (classes - 1), classes)
    assert law.get_epsilon_for_delta(0) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 30.0, 50.0, 63.0])
def test_a_label_is_never_changed_less_often_than_epsilon_asks(epsilon: float) -> None:
    threshold = int(LabelDp(epsilon=epsilon)._threshold(10))
    assert 9 * (2**64 - threshold) <= threshold * math.exp(epsilon) * (1 + 1e-12)


def test_a_row_has_one_answer_in_any_mini_batch_and_epoch() -> None:
    labels, row_keys = torch.arange(1000) % 7, keys(1000)
    first = answers(labels, row_keys, classes=7)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    again = torch.cat([answers(labels[part], row_keys[part], classes=7) for part in order.chunk(16)])
    assert torch.equal(again, first[order])
    assert 0.3 < float((first != labels).float().mean()) < 0.9


def test_rows_answer_independently_of_each_other_and_of_neighbouring_keys() -> None:
    kept = answers(torch.zeros(40_000, dtype=torch.int64), torch.arange(40_000), 0.0, 2).double()
    for lag in (1, 2, 256):
        assert abs(float(torch.corrcoef(torch.stack((kept[:-lag], kept[lag:])))[0, 1])) < 0.02


@pytest.mark.parametrize("shape", [(6,), (6, 1), (0,), (0, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = torch.ones(shape, dtype=dtype)
    given = answers(labels, keys(shape[0]), 0.5, 0 if dtype.is_floating_point else 3)
    assert (given.shape, given.dtype) == (shape, dtype)
    assert torch.equal(labels, torch.ones(shape, dtype=dtype))


def test_labels_of_a_binary_loss_are_two_classes() -> None:
    labels, row_keys = torch.arange(20_000) % 2, keys(20_000)
    given = answers(labels.float(), row_keys)
    assert torch.equal(given.long(), answers(labels, row_keys, classes=2))
    kept = int((given == labels).sum())
    assert stats.binomtest(kept, 20_000, math.e / (math.e + 1)).pvalue > 1e-3


def test_zero_strength_is_the_very_same_tensor() -> None:
    labels = torch.arange(6)
    assert answers(labels, None, 64.0) is labels
    assert LabelDp(epsilon=64.0).neutral
    assert LabelDp(epsilon=64.0).mechanism(TensorShape("int64", (6,))) is None
    assert not LabelDp(epsilon=0.0).neutral


def test_a_release_costs_epsilon_once() -> None:
    assert LabelDp(epsilon=1.5).mechanism(TensorShape("int64", (8,))) == Mechanism(
        kind="pure", scale=1.5, sensitivity=1.0, relation="replace one row's label", once=True
    )


def test_without_keys_of_the_rows_it_refuses() -> None:
    with pytest.raises(PlanError, match="does not know its rows"):
        answers(torch.arange(3), None, classes=3)


def test_what_are_no_labels_is_refused() -> None:
    with pytest.raises(PlanError, match="how many"):
        answers(torch.arange(3), keys(3))
    with pytest.raises(DataError, match="from 0 to 1"):
        answers(torch.arange(3), keys(3), classes=2)
    with pytest.raises(DataError, match="from 0 to 1"):
        answers(torch.tensor([0, -100, 1]), keys(3), classes=2)
    for labels, classes in ((torch.tensor([0.0, 0.5]), 0), (torch.tensor([0.0, math.nan]), 0), (torch.ones(2), 3)):
        with pytest.raises(DataError, match="0/1"):
            answers(labels, keys(2), classes=classes)


def test_shapes_and_options_that_it_cannot_defend_are_refused_in_the_plan() -> None:
    defence = LabelDp(epsilon=1.0)
    for good in (TensorShape("int64", (8,)), TensorShape("int64", (0,)), TensorShape("float32", (8, 1))):
        assert defence.fault(good) is None
    for bad in (TensorShape("int64", (8, 4)), TensorShape("float32", (8, 10)), TensorShape("int64", ())):
        assert "one label a row" in str(defence.fault(bad))
    assert "neither" in str(defence.fault(TensorShape("bool", (8,))))
    for strength in (-1.0, math.inf, math.nan):
        with pytest.raises(PlanError, match="epsilon"):
            LabelDp(epsilon=strength)
    with pytest.raises(PlanError, match="did you mean 'forward'"):
        LabelDp(epsilon=1.0, correction="foreward")
    with pytest.raises(PlanError, match="tell nothing"):
        LabelDp(epsilon=0.0, correction="backward")


@pytest.mark.parametrize("classes", [2, 10])
def test_the_chances_that_it_tells_are_those_by_which_it_answers(classes: int) -> None:
    for epsilon in (0.0, 1.0, 20.0, 63.0):
        defence = LabelDp(epsilon=epsilon)
        changed = 1 - defence.chances(classes).diagonal()
        assert changed.tolist() == pytest.approx([float(defence._threshold(classes)) / 2**64] * classes, abs=1e-15)
        assert defence.chances(classes).sum(1).tolist() == pytest.approx([1.0] * classes, abs=1e-15)
