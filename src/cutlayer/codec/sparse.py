"""What top-k and its randomised sister share: some places of each row cross, with their values; elsewhere is zero.

A payload is the places (`places`), then the values [rows, k] as the inner codec has them. A tensor of two dimensions
or more has a row for each index of dim 0; any other is one row, as is every tensor where places are picked across it.
"""

import math

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.places import pack_places, place_bytes, unpack_places
from cutlayer.codec.sections import finite, joined, refuse_if_not_finite
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

ACROSS = ("row", "tensor")


def checked(word: str, share: float, across: str) -> None:
    """Raises `PlanError`."""
    if not 0 < share <= 1:
        raise PlanError(f"{word}: share = {share!r} must be above 0 and at most 1")
    if across not in ACROSS:
        raise PlanError(f"{word}: across = {across!r} is unknown; known are {', '.join(ACROSS)}")


def size_of(shape: TensorShape, share: float, across: str) -> tuple[int, int, int]:
    """(rows, k, n): how many of how many elements of each row cross; at least one, where there is one."""
    whole = across == "tensor" or len(shape.shape) < 2
    rows = 1 if whole else shape.shape[0]
    n = math.prod(shape.shape) if whole else math.prod(shape.shape[1:])
    return rows, min(n, math.ceil(share * n - 1e-9)), n


def values_shape(shape: TensorShape, rows: int, k: int) -> TensorShape:
    """What the inner codec carries."""
    return TensorShape(shape.dtype, (rows, k))


def most_bytes(inner: Codec, shape: TensorShape, size: tuple[int, int, int]) -> int:
    rows, k, n = size
    return place_bytes(rows, k, n) + inner.most_bytes(values_shape(shape, rows, k))


def encode(codec: Codec, inner: Codec, x_BN: Tensor, places: Tensor, seed: int) -> Encoded:  # noqa: N803
    """`places` [rows, k], rising. Raises `CodecError` where a value is not finite."""
    n = x_BN.shape[1]
    values = x_BN if places.shape[1] == n else x_BN.gather(1, places)
    if not codec.lossless:
        refuse_if_not_finite(codec, values)
    return Encoded(joined(pack_places(places, n), inner.encode(values, seed).payload))


def decode(codec: Codec, inner: Codec, payload: Tensor, shape: TensorShape, size: tuple[int, int, int]) -> Tensor:
    """Raises `CodecError`."""
    rows, k, n = size
    cut = place_bytes(rows, k, n)
    values = inner.decode(payload[cut:], values_shape(shape, rows, k))
    if not codec.lossless and not finite(values):
        raise CodecError(f"{codec.name}: a payload has NaN or infinite values")
    if k == n:
        return values.view(shape.shape)
    places = unpack_places(payload[:cut], rows, k, n)
    return torch.zeros(rows, n, dtype=values.dtype).scatter_(1, places, values).view(shape.shape)


def largest(x_BN: Tensor, k: int) -> Tensor:  # noqa: N803
    """[rows, k]: the places of the k largest |x| of each row, rising. NaN counts as the largest."""
    rows, n = x_BN.shape
    if k == n:
        return torch.arange(n).expand(rows, n)
    return x_BN.abs().topk(k, dim=1, sorted=False).indices.sort(1).values


def sent(places: Tensor, tensor: Tensor) -> Tensor:
    """A mask of the tensor's shape: True where a value crossed."""
    rows = places.shape[0]
    mask = torch.zeros(tensor.shape, dtype=torch.bool)
    if tensor.numel():
        mask.view(rows, -1).scatter_(1, places, True)
    return mask.to(tensor.device)
