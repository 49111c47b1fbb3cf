"""Top-k: of each row the `share` with the largest |x|; the rest is zero.

Size: the values as the inner codec has them, and their places (`places`). Error: the largest |x| left out, or the inner
codec's where that is larger.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from cutlayer.codec import sparse
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.raw import RAW
from cutlayer.codec.sections import carried, exactly, float_fault, shape_of
from cutlayer.plan.tensors import TensorShape


@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    """`share`: of the elements of each row, rounded up. `across`: each `row` for itself, or the `tensor` as a whole.

    `masked`: the gradient that comes back is set to zero where nothing was sent, as the derivative has it.
    """

    share: float
    across: str = "row"
    masked: bool = False
    inner: Codec = RAW
    word: ClassVar[str] = "topk"
    packs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        sparse.checked(self.word, self.share, self.across)

    @property
    def lossless(self) -> bool:
        return self.share == 1 and self.inner.lossless

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return sparse.most_bytes(self.inner, shape, self._size(shape))

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel() or self.lossless:
            return 0.0
        x_BN = self._rows(tensor.detach().cpu().contiguous())  # noqa: N806
        places = self._places(x_BN)
        left_out = x_BN.abs().scatter(1, places, 0.0)
        return max(float(left_out.max()), self.inner.error_bound(x_BN.gather(1, places)))

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        x_BN = self._rows(carried(self, tensor))  # noqa: N806
        places = self._places(x_BN)
        kept = sparse.sent(places, tensor) if self.masked else None
        return Encoded(sparse.encode(self, self.inner, x_BN, places, seed).payload, kept)

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        return sparse.decode(self, self.inner, payload, shape, self._size(shape))

    def correct(self, gradient: Tensor, kept: Any) -> Tensor:
        return gradient if kept is None else gradient.masked_fill(~kept, 0.0)

    def _size(self, shape: TensorShape) -> tuple[int, int, int]:
        return sparse.size_of(shape, self.share, self.across)

    def _rows(self, tensor: Tensor) -> Tensor:
        rows, _, n = self._size(shape_of(tensor))
        return tensor.view(rows, n)

    def _places(self, x_BN: Tensor) -> Tensor:  # noqa: N803
        return sparse.largest(x_BN, self._size(shape_of(x_BN))[1])
