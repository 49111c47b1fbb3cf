"""Feature-wise dropout (SplitFC): of the features, which all rows have, a share crosses, drawn by how much each varies.

A feature j is sent with probability 1 - p_j and then divided by it, so that the mean is right; features that vary more
between the rows are more likely. The number that crosses is fixed: they are drawn by systematic sampling, which keeps
the probabilities (Madow 1949). The gradient that comes back gets the same factors, as the derivative has it, so that
it need not have the features that did not cross.
Source: Oh et al. 2023, SplitFC (arXiv 2307.10805), section IV. Size: the sent columns as the inner codec has them, and
their places. Error: max|x_j| of the features left out, and max|x_j|·p_j/(1 - p_j) with the inner codec's of those sent.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from cutlayer.codec import scales
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.places import pack_places, place_bytes, unpack_places
from cutlayer.codec.raw import RAW
from cutlayer.codec.sections import (
    carried,
    exactly,
    finite,
    float_fault,
    joined,
    refuse_if_not_finite,
    shape_of,
    working,
)
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape


@dataclass(frozen=True, kw_only=True)
class FeatureDropout(Codec):
    """`share`: of the features that cross, rounded up; SplitFC's 1/R. With 1 it is the inner codec."""

    share: float
    inner: Codec = RAW
    word: ClassVar[str] = "feature_dropout"
    packs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PlanError(f"feature_dropout: share = {self.share!r} must be above 0 and at most 1")

    @property
    def lossless(self) -> bool:
        return self.share == 1 and self.inner.lossless

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        _, k, n = self._size(shape)
        return place_bytes(1, k, n) + self.inner.most_bytes(self._sent(shape))

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel() or self.lossless:
            return 0.0
        shape = shape_of(tensor)
        rows, k, n = self._size(shape)
        x_BN = working(tensor.detach().cpu().contiguous()).view(rows, n)  # noqa: N806
        if k == n:
            return self.inner.error_bound(tensor.detach().cpu().reshape(rows, n))
        chances = _chances(x_BN, k)
        sizes = x_BN.abs().amax(0)
        inner = self.inner.error_bound((x_BN / chances).reshape(-1))
        return (
            float(torch.maximum(sizes, sizes * (1 / chances - 1)).max()) + inner + scales.slack(sizes / chances, shape)
        )

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        flat = carried(self, tensor)
        shape = shape_of(flat)
        rows, k, n = self._size(shape)
        x_BN = flat.view(rows, n)  # noqa: N806
        if not self.lossless:
            refuse_if_not_finite(self, x_BN)
        if k == n:
            return Encoded(self.inner.encode(x_BN, seed).payload)
        chances = _chances(working(x_BN), k)
        places = _drawn(chances, k, torch.Generator().manual_seed(seed))
        factors = 1 / chances[places]
        largest = torch.finfo(x_BN.dtype).max
        sent = (working(x_BN)[:, places] * factors).clamp_(-largest, largest).to(x_BN.dtype)
        payload = joined(pack_places(places[None], n), self.inner.encode(sent, seed).payload)
        return Encoded(payload, torch.zeros(n, dtype=factors.dtype).index_copy_(0, places, factors))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        rows, k, n = self._size(shape)
        cut = place_bytes(1, k, n)
        sent = self.inner.decode(payload[cut:], self._sent(shape))
        if not self.lossless and not finite(sent):
            raise CodecError(f"{self.name}: a payload has NaN or infinite values")
        places = self.crossed(payload, shape)
        if places is None:
            return sent.view(shape.shape)
        return torch.zeros(rows, n, dtype=sent.dtype).index_copy_(1, places, sent).view(shape.shape)

    def crossed(self, payload: Tensor, shape: TensorShape) -> Tensor | None:
        _, k, n = self._size(shape)
        return None if k == n else unpack_places(payload[: place_bytes(1, k, n)], 1, k, n)[0]

    def correct(self, gradient: Tensor, kept: Any) -> Tensor:
        if kept is None:
            return gradient
        factors: Tensor = kept.to(gradient)
        return (gradient.reshape(-1, len(factors)) * factors).view(gradient.shape)

    def _size(self, shape: TensorShape) -> tuple[int, int, int]:
        """(rows, k, n): how many of how many features cross; all, where there are no rows."""
        rows = shape.shape[0] if len(shape.shape) > 1 else 1
        n = math.prod(shape.shape[1:] if len(shape.shape) > 1 else shape.shape)
        return rows, min(n, math.ceil(self.share * n - 1e-9)) if rows else n, n

    def _sent(self, shape: TensorShape) -> TensorShape:
        return TensorShape(shape.dtype, self._size(shape)[:2])


def _chances(x_BN: Tensor, k: int) -> Tensor:  # noqa: N803
    """[N]: 1 - p of each feature, proportional to its deviation between rows, at most 1, with the sum k."""
    largest = x_BN.abs().max().clamp_(min=torch.finfo(x_BN.dtype).tiny)
    weights = (x_BN / largest).std(0, correction=0).double()
    weights += weights.mean() * 1e-2 + 1e-12
    chances = weights * (k / weights.sum())
    for _ in range(64):
        full = chances >= 1
        free = k - int(full.sum())
        if bool((chances <= 1).all()) or free <= 0:
            break
        chances = torch.where(full, 1.0, weights * (free / weights[~full].sum()))
    return chances.clamp_(max=1.0).to(x_BN.dtype)


def _drawn(chances: Tensor, k: int, generator: Generator) -> Tensor:
    """[k], rising: places by these chances. Of k equally distant marks each falls into a feature's stretch."""
    ends = chances.double().cumsum(0)
    ends *= k / ends[-1]
    start = torch.rand(1, dtype=torch.float64, generator=generator)
    places = torch.searchsorted(ends, torch.arange(k) + start, right=True).clamp_(max=len(chances) - 1)
    return _apart(places, len(chances))


def _apart(places: Tensor, n: int) -> Tensor:
    """Rounding may let two marks fall into the same stretch of length 1: then the next place is taken."""
    k = len(places)
    room = torch.arange(k)
    places = (places - room).cummax(0).values + room
    return torch.minimum(places, n - k + room)
