"""What a tensor that crosses looks like: agreed in the plan, checked by the receiver before a byte is decoded."""

import math
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

DType = Literal[
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]  # fmt: skip
DTYPE_BYTES: dict[str, int] = dict(zip(get_args(DType), (8, 4, 2, 2, 8, 4, 2, 1, 1, 1), strict=True))

Dim = int | str
"""A fixed size, or a multiple of the batch: `"B"`, `"12*B"`."""
Size = Annotated[int, Meta(ge=0, le=2**40)]


class TensorShape(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The dtype and the sizes of one concrete tensor, as a header carries them."""

    dtype: DType
    shape: Annotated[tuple[Size, ...], Meta(max_length=16)]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class TensorSpec(Struct, frozen=True, kw_only=True):
    """One tensor of an edge, for any number of rows.

    `differentiable` says whether a gradient comes back for it (token ids, masks and sizes have none).
    """

    dtype: DType
    shape: tuple[Dim, ...]
    differentiable: bool = True

    def for_rows(self, rows: int) -> TensorShape:
        """The dtype and sizes that a batch of `rows` must have, to the last dimension.

        >>> str(TensorSpec(dtype="float32", shape=("B", 64)).for_rows(8))
        'float32[8, 64]'
        """
        return TensorShape(self.dtype, tuple(_size(dim, rows) for dim in self.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def most_coded_bytes(shape: TensorShape) -> int:
    """The longest payload that a tensor like this may be encoded as: what a receiver takes, and a plan may name."""
    return 2 * shape.nbytes + 256


def _size(dim: Dim, rows: int) -> int:
    if isinstance(dim, int):
        return dim
    factor, _, _ = dim.rpartition("*")
    return int(factor or 1) * rows
