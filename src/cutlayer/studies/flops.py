"""Operations of a model or a part of it, counted by torch's `FlopCounterMode` on tensors without memory.

It counts convolutions, matrix products and attention, two operations a multiply-add, and nothing else: element-wise
layers, normalisations and losses count 0.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cutlayer.model.joining import combine
from cutlayer.party.agreement import Agreement
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.topology import Join


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """Of one row: forward alone, and with backward."""

    forward: float
    both: float


def operations(part: nn.Module, inputs: Sequence[Tensor], *, backward: bool) -> int:
    """Operations on these inputs, forward or with backward.

    The gradient of an input is computed if it requires one. Raises whatever the part raises.
    """
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        result = part(*inputs)
        ends = [end for end in (result if isinstance(result, tuple) else (result,)) if end.requires_grad]
        if backward and ends:
            torch.autograd.backward(ends, [torch.empty_like(end) for end in ends])
    return int(counter.get_total_flops())


def per_row(
    part: nn.Module, specs: Sequence[Sequence[TensorSpec]], *, join: Join = "", rows: int = 2
) -> Operations | None:
    """What a row costs a part that is called with what these edges carry; None if it cannot run without numbers.

    `join`: how several edges become one. Works on a copy without memory; the part stays as it is.
    """
    try:
        bare = copy.deepcopy(part).to("meta").train()
        counts = [
            operations(bare, combine([_bare(each, rows) for each in specs], join), backward=backward) / rows
            for backward in (False, True)
        ]
    except Exception:  # the user's code, which may ask a tensor for its numbers
        return None
    return Operations(forward=counts[0], both=counts[1])


def of_segments(agreement: Agreement) -> dict[str, Operations | None]:
    """What a row costs each segment of a plan."""
    topology, contents = agreement.plan.topology, agreement.plan.contents
    found = {}
    for segment in topology.segments:
        target = topology.target(segment.name) if segment.loss else None
        specs = [contents.edges[edge.name] for edge in topology.inputs(segment.name) if edge != target]
        found[segment.name] = per_row(agreement.parts[segment.name], specs, join=segment.join)
    return found


def spelled(flops: Operations | None) -> str:
    """Forward and with backward, in words."""
    return "not counted" if flops is None else f"{in_words(flops.forward)} / {in_words(flops.both)}"


def _bare(specs: Sequence[TensorSpec], rows: int) -> tuple[Tensor, ...]:
    """A leaf that wants a gradient may not be written to in place, so a part gets what is one operation above it."""
    shapes = [spec.for_rows(rows) for spec in specs]
    tensors = [torch.empty(shape.shape, dtype=getattr(torch, shape.dtype), device="meta") for shape in shapes]
    return tuple(
        tensor.requires_grad_().clone() if spec.differentiable else tensor
        for tensor, spec in zip(tensors, specs, strict=True)
    )


def in_words(count: float) -> str:
    """A number of operations, or of bytes, with a unit of thousands.

    >>> in_words(1_234_567)
    '1.23 M'
    """
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 1000 or unit == " T":
            break
        count /= 1000
    return f"{count:.3g}{unit}"
