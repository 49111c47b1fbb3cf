"""Losses by their names in `torch.nn.functional`. Each exposes (sum, normaliser), so that unequal parts add up right.

The mean over any set of rows is Σ sums / Σ normalisers. Backward runs on sums; gradients are divided by the step's
normaliser before the optimizer steps. For a class-weighted cross entropy the normaliser is Σ weight[y], not a count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.model.answered import Answered
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.terms import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What is particular to one loss function."""

    function: Callable[..., Tensor]
    options: frozenset[str]
    classes: bool = False
    """Labels are class numbers; the output has a score per class in dimension 1."""
    logit: bool = False
    """The output's sign is the answer."""
    by_class: Callable[[Tensor], Tensor] | None = None
    """Of an output, −log of the chance that it gives to each class, `[B, K, ...]`: the loss if that were the label."""


def _of_scores(output: Tensor) -> Tensor:
    return -F.log_softmax(output, 1)


def _of_logits(output: Tensor) -> Tensor:
    return torch.stack((F.softplus(output), F.softplus(-output)), 1)


KINDS: dict[str, Kind] = {
    "cross_entropy": Kind(
        function=F.cross_entropy,
        options=frozenset({"weight", "label_smoothing", "ignore_index"}),
        classes=True,
        by_class=_of_scores,
    ),
    "nll_loss": Kind(
        function=F.nll_loss, options=frozenset({"weight", "ignore_index"}), classes=True, by_class=torch.neg
    ),
    "binary_cross_entropy_with_logits": Kind(
        function=F.binary_cross_entropy_with_logits,
        options=frozenset({"pos_weight"}),
        logit=True,
        by_class=_of_logits,
    ),
    "mse_loss": Kind(function=F.mse_loss, options=frozenset()),
    "l1_loss": Kind(function=F.l1_loss, options=frozenset()),
    "smooth_l1_loss": Kind(function=F.smooth_l1_loss, options=frozenset({"beta"})),
    "huber_loss": Kind(function=F.huber_loss, options=frozenset({"delta"})),
}


class Loss:
    """One loss with its options, for outputs and labels of any number of rows.

    `answered`: its labels are answers, and it is corrected for that; a kind with `by_class`, and no options.
    """

    def __init__(self, method: Method, answered: Answered | None = None) -> None:
        self.kind = KINDS[method.name]
        self.name = method.name
        self._answered = answered
        self._options = {
            name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for name, value in method.options.items()
        }
        ignored = method.options.get("ignore_index")
        self._ignored = ignored if isinstance(ignored, int) else -100
        weights = self._options.get("weight")
        self._weights = weights if isinstance(weights, Tensor) else None

    def total(self, output: Tensor, labels: Tensor) -> Tensor:
        """The sum over rows, a 0-d tensor with a graph."""
        if self._answered is not None and self.kind.by_class is not None:
            return self._answered.total(self.kind.by_class(output), labels)
        options = {name: _like(value, output) for name, value in self._options.items()}
        return self.kind.function(output, labels, reduction="sum", **options)

    def normaliser(self, labels: Tensor) -> float:
        """What the sum is divided by for torch's `reduction="mean"`."""
        if not self.kind.classes:
            return float(labels.numel())
        if self._weights is None and "ignore_index" not in self._options:
            return float(labels.numel())
        counted = labels[self._counted(labels)]
        return float(counted.numel() if self._weights is None else self._weights[counted.cpu()].sum())

    @property
    def counts_labels(self) -> bool:
        """Whether the normaliser depends on what the labels are, not only on how many."""
        return self.kind.classes and (self._weights is not None or "ignore_index" in self._options)

    def score(self, output: Tensor, labels: Tensor) -> dict[str, float]:
        """`correct` and `count`, where an answer is right or wrong; else nothing."""
        if self._answered is not None:
            guesses = output.argmax(1) if self.kind.classes else output > 0
            return {"correct": self._answered.right(guesses, labels), "count": float(labels.numel())}
        if self.kind.classes:
            counted = self._counted(labels)
            right = (output.argmax(1) == labels) & counted
            return {"correct": float(right.sum()), "count": float(counted.sum())}
        if self.kind.logit:
            right = (output > 0) == (labels > 0.5)
            return {"correct": float(right.sum()), "count": float(labels.numel())}
        return {}

    def _counted(self, labels: Tensor) -> Tensor:
        """Which labels are not to be ignored."""
        return labels.ne(self._ignored)

    def labels(self, output: TensorSpec) -> TensorSpec:
        """What the labels must look like for an output like this."""
        if self.kind.classes:
            return TensorSpec(dtype="int64", shape=(output.shape[0], *output.shape[2:]), differentiable=False)
        return TensorSpec(dtype=output.dtype, shape=output.shape, differentiable=False)

    def fault(self, output: TensorSpec) -> str | None:
        """What torch says to the options, for an output like this; tried on two rows."""
        try:
            labels = self.labels(output)
            answer, target = (
                torch.zeros(spec.for_rows(2).shape, dtype=getattr(torch, spec.dtype)) for spec in (output, labels)
            )
            self.total(answer, target)
        except Exception as error:
            return f"training.loss: torch's {self.name} refuses its options or the model's output {output}: {error}"
        return None

    def classes(self, output: TensorSpec) -> int:
        """How many classes there are; 0 where labels are no classes."""
        size = output.shape[1] if self.kind.classes and len(output.shape) > 1 else 0
        return size if isinstance(size, int) else 0


def _like(value: object, output: Tensor) -> object:
    return value.to(output) if isinstance(value, Tensor) else value
