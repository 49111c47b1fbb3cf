"""Error feedback: what a codec left out of one tensor is added to the next one, so that nothing is lost, only late.

Sources: Seide et al. 2014; Karimireddy et al. 2019 (arXiv 1901.09847); per sample, as activations of the same row come
again in each epoch: Wang et al. 2022, AQ-SGD (arXiv 2206.01299).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.sections import FLOATS, shape_of
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.document import nearest
from cutlayer.plan.tensors import DTYPE_BYTES, TensorShape

FEEDBACKS = ("none", "channel", "sample")
CAP_BYTES = 2**30


def memory_bytes(rows: int, shape: TensorShape) -> int:
    """What feedback per sample keeps for so many rows; `shape`: of a batch of them, its first size being the batch.

    >>> memory_bytes(60_000, TensorShape("float32", (64, 32, 7, 7)))
    376800000
    """
    return rows * (math.prod(shape.shape[1:]) * DTYPE_BYTES[shape.dtype] + 8)


@dataclass(kw_only=True, slots=True)
class Coder:
    """A codec for one direction of one edge, with what it remembers.

    `feedback`: `none`; `channel`, one residual, added to the next tensor position by position, of which a smaller
    batch has the first rows; or `sample`, one residual for each row, by the numbers that `encode` is given.
    `cap_bytes` bounds the memory of the latter.
    """

    codec: Codec
    feedback: str = "none"
    cap_bytes: int = CAP_BYTES
    _residual: Tensor | None = field(default=None, init=False)
    _slots: dict[int, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.feedback not in FEEDBACKS:
            raise PlanError(f"feedback = {self.feedback!r} is unknown{nearest(self.feedback, FEEDBACKS)}")

    def encode(self, tensor: Tensor, seed: int, rows: Tensor | None = None) -> Encoded:
        """As the codec's, of the tensor and what was left out before. `rows`: int64 [B], each row's number.

        Raises `CodecError` as the codec does; and where feedback per sample has no row numbers, or has one twice, or
        would take more memory than it may.
        """
        shape = shape_of(tensor)
        if self.feedback == "none" or shape.dtype not in FLOATS or self.codec.lossless or not tensor.numel():
            return self.codec.encode(tensor, seed)
        if not shape.shape:
            raise CodecError(f"feedback = {self.feedback!r} needs a tensor with rows, and this one has no dimension")
        whole = tensor.detach().cpu()
        places = self._places(shape, rows)
        whole = whole + self._known(places, shape)
        encoded = self.codec.encode(whole, seed)
        assert self._residual is not None
        self._residual[places] = whole - self.codec.decode(encoded.payload, shape)
        return encoded

    def state(self) -> dict[str, Tensor]:
        """What to save: nothing before the first tensor."""
        if self._residual is None:
            return {}
        if self.feedback == "channel":
            return {"residual": self._residual.clone()}
        numbers = torch.tensor(list(self._slots), dtype=torch.int64)
        return {"residual": self._residual[: len(self._slots)].clone(), "rows": numbers}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes up a saved state. Raises `CodecError` for one of another kind of feedback."""
        due = {"none": set(), "channel": {"residual"}, "sample": {"residual", "rows"}}[self.feedback]
        if state and state.keys() != due:
            raise CodecError(f"a saved state of {sorted(state)} is none of feedback = {self.feedback!r}")
        self._residual = state["residual"].clone() if state else None
        self._slots = {number: at for at, number in enumerate(state["rows"].tolist())} if "rows" in state else {}

    def _places(self, shape: TensorShape, rows: Tensor | None) -> Tensor:
        """[B]: where the residuals of this tensor's rows lie."""
        if self.feedback == "channel":
            return torch.arange(shape.shape[0])
        if rows is None or rows.dtype != torch.int64 or tuple(rows.shape) != shape.shape[:1]:
            raise CodecError(f"feedback = 'sample' needs the number of each of the {shape.shape[0]} rows, as int64")
        numbers = rows.tolist()
        if len(set(numbers)) != len(numbers):
            raise CodecError("feedback = 'sample' was given the same row twice in one tensor")
        count = len(self._slots) + sum(number not in self._slots for number in numbers)
        if (due := memory_bytes(count, shape)) > self.cap_bytes:
            raise CodecError(
                f"feedback = 'sample' would keep {due / 2**20:,.1f} MiB for {count:,} rows of {shape}, and the cap is "
                f"{self.cap_bytes / 2**20:,.1f} MiB: raise the cap, or say feedback = 'channel'"
            )
        return torch.tensor([self._slots.setdefault(number, len(self._slots)) for number in numbers])

    def _known(self, places: Tensor, shape: TensorShape) -> Tensor:
        """The residuals at these places, zero where there is none yet."""
        row, dtype = shape.shape[1:], getattr(torch, shape.dtype)
        held = self._residual if self._residual is not None else torch.zeros(0, *row, dtype=dtype)
        if held.shape[1:] != row or held.dtype != dtype:
            raise CodecError(f"feedback has residuals of {shape_of(held)}, and the tensor is {shape}")
        count = int(places.max()) + 1
        if count > len(held):
            room = count
            if self.feedback == "sample":
                room = max(count, min(2 * len(held), self.cap_bytes // max(memory_bytes(1, shape), 1)))
            held = torch.cat((held, held.new_zeros(room - len(held), *row)))
        self._residual = held
        return held[places]
