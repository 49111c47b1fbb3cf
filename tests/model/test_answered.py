"""Losses over labels that were answered at random: what they come to on average, over all answers there are."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.defence.label_dp import LabelDp
from cutlayer.model.answered import Answered
from cutlayer.model.loss import Loss
from cutlayer.plan.terms import Method

NAMES = {"cross_entropy": (2, 3, 10), "nll_loss": (3,), "binary_cross_entropy_with_logits": (2,)}
CASES = [(name, classes, epsilon) for name, sizes in NAMES.items() for classes in sizes for epsilon in (0.1, 1.0, 4.0)]
BACKWARD, FORWARD = True, False


def odds(classes: int, epsilon: float) -> Tensor:
    """T, longhand: e^ε to keep a label, against 1 for each other one."""
    told = torch.ones(classes, classes, dtype=torch.float64)
    told.fill_diagonal_(float(torch.tensor(epsilon, dtype=torch.float64).exp()))
    return told / told.sum(1, keepdim=True)


def uneven(classes: int) -> Tensor:
    """Another T, in which no row or column is like another."""
    told = torch.rand(classes, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    told += 2 * torch.eye(classes, dtype=torch.float64)
    return told / told.sum(1, keepdim=True)


def output_of(name: str, classes: int, rows: int = 6) -> Tensor:
    random = torch.Generator().manual_seed(classes)
    if name == "binary_cross_entropy_with_logits":
        return 3 * torch.randn(rows, dtype=torch.float64, generator=random)
    scores = 3 * torch.randn(rows, classes, dtype=torch.float64, generator=random)
    return scores.log_softmax(1) if name == "nll_loss" else scores


def labels_of(name: str, label: int, rows: int = 6) -> Tensor:
    return torch.full((rows,), label, dtype=torch.float64 if name.startswith("binary") else torch.int64)


def over_answers(loss: Loss, name: str, output: Tensor, chances: Tensor) -> Tensor:
    """The mean of a loss over the answers of rows whose answers have these chances."""
    rows = len(output)
    each = [chance * loss.total(output, labels_of(name, answer, rows)) for answer, chance in enumerate(chances)]
    return torch.stack(each).sum()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
def test_the_odds_are_those_of_randomised_response(classes: int, epsilon: float) -> None:
    torch.testing.assert_close(LabelDp(epsilon=epsilon).chances(classes), odds(classes, epsilon), rtol=1e-13, atol=0)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(("name", "classes", "epsilon"), CASES)
def test_corrected_backward_a_loss_is_that_over_true_labels_in_the_mean(
    name: str, classes: int, epsilon: float, even: bool
) -> None:
    """Theorem 1 of Patrini et al. 2017, for each true label and for the gradient as well."""
    chances = odds(classes, epsilon) if even else uneven(classes)
    corrected = Loss(Method(name=name), Answered(chances=chances, backward=BACKWARD))
    for label in range(classes):
        output = output_of(name, classes).requires_grad_()
        found = over_answers(corrected, name, output, chances[label])
        true: Tensor = getattr(F, name)(output, labels_of(name, label), reduction="sum")
        torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-12)
        ours, theirs = (torch.autograd.grad(each, output)[0] for each in (found, true))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "classes"), [(name, size) for name, sizes in NAMES.items() for size in sizes])
def test_corrected_forward_a_loss_is_that_of_answers_by_what_the_model_says_of_them(name: str, classes: int) -> None:
    chances, output = uneven(classes), output_of(name, classes)
    said = torch.stack((1 - output.sigmoid(), output.sigmoid()), 1) if output.dim() == 1 else output.softmax(1)
    loss = Loss(Method(name=name), Answered(chances=chances, backward=FORWARD))
    for answer in range(classes):
        longhand = -sum(torch.log(row @ chances)[answer] for row in said)
        torch.testing.assert_close(loss.total(output, labels_of(name, answer)), longhand, rtol=1e-12, atol=1e-12)


def slope(loss: Loss, name: str, answered: Tensor, shares: Tensor) -> float:
    """Of a loss over answers, at a model that says the classes' true shares."""
    best = torch.logit(shares[1:]) if name.startswith("binary") else shares.log()[None]
    free = best.clone().requires_grad_()
    found = over_answers(loss, name, free.log_softmax(1) if name == "nll_loss" else free, answered)
    return float(torch.autograd.grad(found, free)[0].abs().max())


@pytest.mark.parametrize(("name", "classes", "epsilon"), CASES)
def test_a_corrected_loss_is_least_where_that_over_true_labels_is(name: str, classes: int, epsilon: float) -> None:
    """Theorems 1 and 2 of Patrini et al. 2017; the loss over bare answers is least elsewhere."""
    chances = odds(classes, epsilon)
    shares = torch.arange(1, classes + 1, dtype=torch.float64) / sum(range(classes + 1))
    corrected = [Loss(Method(name=name), Answered(chances=chances, backward=way)) for way in (BACKWARD, FORWARD)]
    assert max(slope(loss, name, shares @ chances, shares) for loss in corrected) < 1e-12
    assert slope(Loss(Method(name=name)), name, shares @ chances, shares) > 1e-3


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("way", [BACKWARD, FORWARD])
def test_the_right_answers_are_those_of_true_labels_in_the_mean(name: str, way: bool) -> None:
    classes = NAMES[name][0]
    chances, output = uneven(classes), output_of(name, classes)
    plain, corrected = Loss(Method(name=name)), Loss(Method(name=name), Answered(chances=chances, backward=way))
    for label in range(classes):
        found = [corrected.score(output, labels_of(name, answer)) for answer in range(classes)]
        mean = sum(float(chance) * score["correct"] for chance, score in zip(chances[label], found, strict=True))
        assert mean == pytest.approx(plain.score(output, labels_of(name, label))["correct"], abs=1e-12)
        assert {score["count"] for score in found} == {len(output)}


@pytest.mark.parametrize("way", [BACKWARD, FORWARD])
def test_parts_add_up_and_a_column_of_labels_is_as_good(way: bool) -> None:
    answered = Answered(chances=odds(2, 1.0), backward=way)
    loss = Loss(Method(name="binary_cross_entropy_with_logits"), answered)
    logits, answers = output_of("binary_cross_entropy_with_logits", 2), torch.tensor([0, 1, 1, 0, 1, 0]).double()
    parts = loss.total(logits[:2], answers[:2]) + loss.total(logits[2:], answers[2:])
    torch.testing.assert_close(loss.total(logits, answers), parts)
    torch.testing.assert_close(loss.total(logits[:, None], answers[:, None]), parts)


@pytest.mark.parametrize("answer", [-1, 3])
@pytest.mark.parametrize("way", [BACKWARD, FORWARD])
def test_an_answer_that_is_no_class_is_refused(answer: int, way: bool) -> None:
    loss = Loss(Method(name="cross_entropy"), Answered(chances=odds(3, 1.0), backward=way))
    with pytest.raises(IndexError):
        loss.total(output_of("cross_entropy", 3, 1), torch.tensor([answer]))
