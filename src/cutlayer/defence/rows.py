"""Rows of a tensor: what can be said of each, whatever else is in the mini-batch."""

import math

import torch
from torch import Tensor

from cutlayer.errors import Diverged
from cutlayer.plan.tensors import TensorShape


def float_fault(word: str, shape: TensorShape) -> str | None:
    """Why a defence of floats, row by row, cannot work on tensors like this; or None."""
    if not shape.dtype.startswith(("float", "bfloat")):
        return f"{word} defends floats, and {shape} has none: name it for another edge"
    if not shape.shape:
        return f"{word} defends rows, and {shape} has none: name it for another edge"
    return None


def wide(tensor: Tensor) -> Tensor:
    """In float64, where the device has that: what is added there is rounded once, at the end."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def clipped(tensor: Tensor, bound: float, order: int) -> Tensor:
    """Each row x of `[B, ...]` times min(1, bound / ‖x‖), by its L1 or L2 norm, `wide` (Abadi et al. 2016, Alg. 1).

    Differentiable: a row beyond the bound has the Jacobian (bound/‖x‖)(I − x uᵀ/‖x‖) with u = ∂‖x‖/∂x, others I.
    Raises `Diverged` for a row without a finite norm, since no factor bounds it.
    """
    x_BF = wide(tensor).reshape(len(tensor), math.prod(tensor.shape[1:]))  # noqa: N806
    norms = torch.linalg.vector_norm(x_BF, ord=order, dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):
        raise Diverged("a row that was to be clipped is not finite, so it was not sent: lower the learning rate")
    shorter: Tensor = x_BF * (bound / norms.clamp(min=bound))
    return shorter.view(tensor.shape)
