"""Raw: a tensor's own bytes. Lossless; the payload is the tensor's memory, not a copy of it, wherever it can be.

Size: elements times bytes per element. Error: none.
"""

import torch
from torch import Tensor

from cutlayer.plan.tensors import TensorShape


def encode(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any shape, row by row. Copies only what is not contiguous, or not on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def decode(payload: memoryview, shape: TensorShape) -> Tensor:
    """A tensor over the payload's own memory, which it keeps alive."""
    dtype = getattr(torch, shape.dtype)
    if not payload.nbytes:
        return torch.empty(shape.shape, dtype=dtype)
    return torch.frombuffer(payload, dtype=dtype).view(shape.shape)
