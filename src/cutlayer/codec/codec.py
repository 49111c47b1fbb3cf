"""What a codec is: a tensor to bytes and back. One file a method; `registry` has their names and builds chains."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from cutlayer.codec.spelling import spelled
from cutlayer.plan.tensors import TensorShape


@dataclass(frozen=True, slots=True)
class Encoded:
    """What crosses: `payload`, a contiguous uint8 tensor of one dimension on the CPU. What the sender keeps until the
    answer comes is in `kept`, for `correct`.
    """

    payload: Tensor
    kept: Any = None


class Codec(Protocol):
    """One method, or a chain of them, with settings. It has no state: an instance may serve many edges and threads.

    What it remembers from one tensor to the next is its user's: see `feedback`.
    """

    @property
    def name(self) -> str:
        """As a plan would write it, such as `topk(share=0.01)+zstd`."""
        return spelled(self)

    @property
    def lossless(self) -> bool:
        """Whether `decode(encode(x))` has the bits of x."""
        return False

    def fault(self, shape: TensorShape) -> str | None:
        """Why it cannot carry tensors like this (their dtype, say), in a sentence with the mend; or None."""

    def most_bytes(self, shape: TensorShape) -> int:
        """The largest payload that a tensor like this can become. Exact for all but the lossless last stages."""
        ...

    def error_bound(self, tensor: Tensor) -> float:
        """The largest |x - decode(encode(x))| of any element for this tensor; from the method's formula, not by trying.
        0 where it is lossless."""
        ...

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        """The payload of a tensor of any shape, contiguous or not, on any device. Leaves the tensor as it is.

        `seed`: what random choices are drawn by, equal for equal (party, run, edge, ticket). Raises `CodecError` for
        what it cannot carry: NaN and infinite values, where it is not lossless.
        """
        ...

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        """The tensor, on the CPU. Needs nothing but the payload and the shape that both ends know.

        Raises `CodecError` for any payload that `encode` would not have made, before it allocates more than the shape
        needs: sizes, indices out of range or not in order, scales that are not finite.
        """
        ...

    def crossed(self, payload: Tensor, shape: TensorShape) -> Tensor | None:
        """The places of the features that crossed, rising, where the others need no gradient: int64, counted over all
        dimensions but the first. None where all need one. Raises `CodecError` as `decode` does.
        """
        return None

    def correct(self, gradient: Tensor, kept: Any) -> Tensor:
        """The gradient that came back for what was sent, corrected for what encoding did to it; by default as it is."""
        return gradient
