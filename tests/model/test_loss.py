"""Losses: the sum and the normaliser of any parts add up to torch's own mean of the whole."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cutlayer.model.loss import KINDS, Loss
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.terms import Method

WEIGHT = [0.1, 2.5, 0.7, 1.3]
POS_WEIGHT = [0.5, 3.0, 1.0, 0.3]
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("cross_entropy", {"weight": WEIGHT}),
    ("cross_entropy", {"weight": [1, 2, 3, 4]}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"ignore_index": 1}),
    ("cross_entropy", {"ignore_index": -100}),
    ("cross_entropy", {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 2}),
    ("nll_loss", {}),
    ("nll_loss", {"weight": WEIGHT, "ignore_index": 3}),
    ("binary_cross_entropy_with_logits", {}),
    ("binary_cross_entropy_with_logits", {"pos_weight": POS_WEIGHT}),
    ("mse_loss", {}),
    ("l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.3}),
    ("huber_loss", {"delta": 0.4}),
]


def example(
    name: str, options: dict[str, Any], rows: int, seed: int, per_row: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """An output of four classes or numbers, and labels of which not all are ignored."""
    random = torch.Generator().manual_seed(seed)
    output = torch.randn((rows, 4, *per_row), dtype=torch.float64, generator=random)
    if not KINDS[name].classes:
        return output, torch.rand((rows, 4, *per_row), dtype=torch.float64, generator=random)
    labels = torch.randint(0, 4, (rows, *per_row), generator=random)
    if options.get("ignore_index") == -100:
        labels[1::2] = -100
    labels[0] = 0
    return output, labels


def torchs(name: str, options: dict[str, Any], output: Tensor, labels: Tensor) -> Tensor:
    """The mean as torch takes it, given tensors of weights in the output's dtype."""
    given = {k: torch.tensor(v, dtype=output.dtype) if isinstance(v, list) else v for k, v in options.items()}
    mean: Tensor = getattr(F, name)(output, labels, **given)
    return mean


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 9), max_size=3),
    seed=st.integers(0, 99),
    per_row=st.sampled_from([(), (2,), (2, 3)]),
)
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_sums_over_normalisers_of_any_parts_are_torchs_mean(
    name: str, options: dict[str, Any], rows: int, cuts: list[int], seed: int, per_row: tuple[int, ...]
) -> None:
    if "pos_weight" in options:
        per_row = ()  # its numbers lie along the last dimension
    loss = Loss(Method(name=name, options=options))
    output, labels = example(name, options, rows, seed, per_row)
    ends = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [(output[a:b], labels[a:b]) for a, b in pairwise(ends) if a < b]
    total = torch.stack([loss.total(out, y) for out, y in parts]).sum()
    mean = total / sum(loss.normaliser(y) for _, y in parts)
    torch.testing.assert_close(mean, torchs(name, options, output, labels), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_gradients_of_the_sum_over_the_normaliser_are_those_of_the_mean(name: str, options: dict[str, Any]) -> None:
    loss = Loss(Method(name=name, options=options))
    output, labels = example(name, options, 7, 3)
    ours, theirs = output.clone().requires_grad_(), output.clone().requires_grad_()
    torch.autograd.backward(loss.total(ours, labels))
    torch.autograd.backward(torchs(name, options, theirs, labels))
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad / loss.normaliser(labels), theirs.grad, rtol=1e-13, atol=1e-15)


def test_options_are_as_exact_as_the_output() -> None:
    """0.1 is another number in float32: a weight kept as such would be off by 1e-8 in float64."""
    loss = Loss(Method(name="cross_entropy", options={"weight": [0.1, 0.1]}))
    output = torch.zeros(1, 2, dtype=torch.float64)
    exact = 0.1 * torch.log(torch.tensor(2.0, dtype=torch.float64))
    assert abs(loss.total(output, torch.tensor([0])) - exact) < 1e-16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_sum_has_the_outputs_dtype(dtype: torch.dtype) -> None:
    loss = Loss(Method(name="cross_entropy", options={"weight": [0.5, 2.0]}))
    assert loss.total(torch.zeros(3, 2, dtype=dtype), torch.tensor([0, 1, 1])).dtype is dtype


def test_correct_answers_are_counted_where_answers_are_right_or_wrong() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    assert Loss(Method(name="cross_entropy")).score(scores, torch.tensor([0, 1, 1])) == {"correct": 2, "count": 3}
    logits = torch.tensor([[0.1], [-0.1], [3.0]])
    found = Loss(Method(name="binary_cross_entropy_with_logits")).score(logits, torch.tensor([[1.0], [1.0], [0.0]]))
    assert found == {"correct": 1, "count": 3}
    assert Loss(Method(name="mse_loss")).score(logits, logits) == {}


def test_ignored_labels_are_no_answers() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    loss = Loss(Method(name="cross_entropy", options={"ignore_index": 1}))
    assert loss.score(scores, torch.tensor([0, 1, 1])) == {"correct": 1, "count": 1}


@pytest.mark.parametrize(
    ("name", "output", "labels", "classes"),
    [
        ("cross_entropy", ("B", 10), ("B",), 10),
        ("cross_entropy", ("B", 5, 8, 8), ("B", 8, 8), 5),
        ("nll_loss", ("7*B", 3), ("7*B",), 3),
    ],
)
def test_labels_of_classes_are_whole_numbers_one_per_score_vector(
    name: str, output: tuple[int | str, ...], labels: tuple[int | str, ...], classes: int
) -> None:
    loss, spec = Loss(Method(name=name)), TensorSpec(dtype="float32", shape=output)
    assert loss.labels(spec) == TensorSpec(dtype="int64", shape=labels, differentiable=False)
    assert loss.classes(spec) == classes


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.classes])
def test_other_labels_look_like_the_output(name: str) -> None:
    spec = TensorSpec(dtype="float64", shape=("B", 3))
    assert Loss(Method(name=name)).labels(spec) == TensorSpec(dtype="float64", shape=("B", 3), differentiable=False)
    assert Loss(Method(name=name)).classes(spec) == 0
