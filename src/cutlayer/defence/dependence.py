"""How much two sides of a mini-batch have to do with each other: distance correlation, and linear CKA.

Each takes `[B, ...]` and `[B, ...]` and gives a scalar in [0, 1], differentiable in both. They compare distances, or
inner products, between rows: shifting, turning or scaling either side as a whole changes nothing.

Both are the plain estimates, which chance lifts: for independent sides they fall to 0 as B grows, but with more
features than rows they stay near 1. Compare values only at equal B, and beside the value for shuffled rows.

All is computed in float64 by products of centred rows, ten times faster than distances one by one. Rows closer
together than 3e-7 of the longest row count as one: their distance is 0, and so is its gradient, where the true one has
no limit. With fewer than two rows, or where all rows of a side are equal, nothing can be said: 0.

Sources: Székely, Rizzo, Bakirov 2007, "Measuring and testing dependence by correlation of distances" (the sample
statistics of section 2.3); Kornblith, Norouzi, Lee, Hinton 2019 (arXiv 1905.00414, section 3) for CKA.
"""

import math

import torch
from torch import Tensor

_COINCIDE = 1e-13


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """R(x, z): 0 for independent sides, in the limit; 1 if one is the other, shifted, turned and scaled."""
    return _told(z, _root(_cosine(_distances(_products(x)), _distances(_products(z)))))


def linear_cka(x: Tensor, z: Tensor) -> Tensor:
    """|XᵀZ|² / (|XᵀX| |ZᵀZ|), in Frobenius norms of the centred sides."""
    return _told(z, _cosine(_products(x), _products(z)))


def root_cka(x: Tensor, z: Tensor) -> Tensor:
    """√(linear CKA): what distance correlation becomes if distances are squared, as in the code of NoPeek's authors."""
    return _told(z, _root(_cosine(_products(x), _products(z))))


def _told(z: Tensor, value: Tensor) -> Tensor:
    """In the dtype of z, or in float32, since halves hold too few digits of it."""
    return value.to(torch.promote_types(z.dtype, torch.float32))


def rounding(dtype: torch.dtype) -> float:
    """By how much of their size equal numbers may differ that were computed in this dtype: no more than float32's."""
    if not dtype.is_floating_point:
        return torch.finfo(torch.float64).eps
    return 4 * min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _products(side: Tensor) -> Tensor:
    """[B, B]: inner products of the centred rows, scaled so that no number in them is above 1."""
    rows = side.reshape(len(side), math.prod(side.shape[1:])).double()
    nothing = (rows.sum() * 0).expand(len(rows), len(rows))
    if not rows.numel():
        return nothing
    centred = rows - rows.mean(0)
    spread = centred.detach().abs().max()
    # What is left of equal rows is rounding: it has no direction worth learning from.
    if spread <= rounding(side.dtype) * rows.detach().abs().max():
        return nothing
    scaled = centred / spread
    return scaled @ scaled.T


def _distances(products: Tensor) -> Tensor:
    """[B, B]: Euclidean distances between rows, double-centred."""
    if not len(products):
        return products
    squares = products.diagonal()
    squared = squares[:, None] + squares - 2 * products
    apart = squared > _COINCIDE * squares.detach().max()
    distances = torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """⟨one, other⟩ / (|one| |other|); 0 where one of them is 0."""
    if not (one.detach().any() and other.detach().any()):
        return (one * other).sum()
    return (one * other).sum() / (one.square().sum() * other.square().sum()).sqrt()


def _root(value: Tensor) -> Tensor:
    """√value, with gradient 0 at 0 and below, where only rounding leads."""
    above = value > 0
    return torch.where(above, torch.where(above, value, 1).sqrt(), 0)
