"""Weighted sums and means of tensors by name, added one after another in the caller's order."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class WeightedSum:
    """Σ weight · tensor by name, in float64; the same additions in the same order give the same bits.

    A name may be missing from some additions: its mean is over those that had it. What was added once comes back from
    `mean` bit for bit, whatever its weight.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        """The sum of all weights."""
        self._sums: dict[str, Tensor] = {}  # not yet weighted, for a name that was added once
        self._first: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add `weight` times each tensor; the tensors stay the caller's.

        Raises:
            ValueError: a weight that is not positive and finite, a tensor of whole numbers, or one of another shape
                or dtype than before; nothing was added.
        """
        check_added(tensors, weight, {name: (total.shape, self._dtypes[name]) for name, total in self._sums.items()})
        self.weight += weight
        for name, tensor in tensors.items():
            self._add(name, tensor.detach(), weight)

    def mean(self) -> dict[str, Tensor]:
        """The weighted mean of each name, in the dtype it was added in."""
        return {
            name: (total.clone() if name in self._first else total / self._weights[name]).to(self._dtypes[name])
            for name, total in self._sums.items()
        }

    def total(self) -> dict[str, Tensor]:
        """The weighted sum of each name, in the dtype it was added in."""
        return {name: (total * self._first.get(name, 1.0)).to(self._dtypes[name]) for name, total in self._sums.items()}

    def _add(self, name: str, tensor: Tensor, weight: float) -> None:
        if name not in self._sums:
            self._sums[name] = tensor.to(torch.float64, copy=True)
            self._first[name] = self._weights[name] = weight
            self._dtypes[name] = tensor.dtype
            return
        total = self._sums[name]
        if name in self._first:
            total.mul_(self._first.pop(name))
        total.add_(tensor, alpha=weight)
        self._weights[name] += weight


def check_added(
    tensors: Mapping[str, Tensor], weight: float, before: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> None:  # fmt: skip
    """Raises `ValueError`: a weight that is not positive and finite, a tensor of whole numbers, or one of another
    shape or dtype than what was added `before` under its name."""
    if not 0 < weight < math.inf:
        raise ValueError(f"the weight {weight} is not a positive, finite number")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name!r} is {tensor.dtype}, and only floats have a mean")
        if before.get(name, (tensor.shape, tensor.dtype)) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name!r} has another shape or dtype than what was added before it")
