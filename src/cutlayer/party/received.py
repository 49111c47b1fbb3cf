"""What came from a peer: bytes until a segment needs them; then tensors, refused if they are no sound numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.codec import raw
from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Backward, Forward


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A received payload: bytes, and what they are agreed to be. `message` is what brought them, from `peer`."""

    shapes: tuple[TensorShape, ...]
    views: Sequence[memoryview]
    peer: str = ""
    message: Forward | Backward | None = None

    def decode(self, device: torch.device, largest_rms: float) -> tuple[Tensor, ...]:
        """The tensors, on a device. Raises `RemoteProtocolError` for NaN, infinite and absurdly large ones."""
        tensors = [raw.decode(view, shape) for view, shape in zip(self.views, self.shapes, strict=True)]
        self.check(tensors, largest_rms)
        return tuple(tensor.to(device) for tensor in tensors)

    def check(self, tensors: Sequence[Tensor], largest_rms: float) -> None:
        """Raises `RemoteProtocolError` for NaN, infinite and absurdly large ones."""
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.numel():
                self._check(tensor, largest_rms)

    def _check(self, tensor: Tensor, largest_rms: float) -> None:
        """One pass over the tensor: its norm is finite only if all its elements are."""
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        rms = torch.linalg.vector_norm(tensor, dtype=wide).item() / math.sqrt(tensor.numel())
        if math.isfinite(rms) and rms <= largest_rms:
            return
        what = "NaN or infinite values" if not math.isfinite(rms) else f"a root mean square of {rms:.3g}"
        where = f" on {self.message.edge} for {self.message.ticket}" if self.message else ""
        mend = f"(limits.tensor_rms = {largest_rms:.3g}): lower the learning rate, or look at the rows of that ticket"
        raise RemoteProtocolError("not-finite", self.peer, f"{what}{where} {mend}")
