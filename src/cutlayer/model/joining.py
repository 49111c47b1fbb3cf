"""The rows of several parties through one forward: joined before it, split after it, averaged at the cut.

And what several parties have of the same rows, made one.

Rows are those of the batch. A tensor whose spec says `12*B` has twelve successive entries for each.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.topology import Join

Tensors = tuple[Tensor, ...]


def combine(values: Sequence[Tensors], how: Join) -> Tensors:
    """What several edges bring of the same rows `[B, ...]`, as one: concatenated along dimension 1, summed, averaged.

    Without `how`, all of them one after another.

    >>> combine([(torch.ones(2, 1),), (torch.ones(2, 3),)], "concat")[0].shape
    torch.Size([2, 4])
    """
    if not how or len(values) == 1:
        return tuple(tensor for tensors in values for tensor in tensors)
    alike = list(zip(*values, strict=True))
    if how == "concat":
        return tuple(torch.cat(tensors, 1) for tensors in alike)
    sums = tuple(sum(tensors[1:], start=tensors[0]) for tensors in alike)
    return sums if how == "sum" else tuple(total / len(values) for total in sums)


def unjoinable(specs: Sequence[TensorSpec]) -> list[str]:
    """Which tensors of an edge cannot be joined over parties: all but those with one dimension that grows with rows.

    >>> unjoinable([TensorSpec(dtype="float32", shape=("B", 3)), TensorSpec(dtype="float32", shape=(3,))])
    ['tensor 1, float32[3]']
    """
    return [f"tensor {i}, {spec}" for i, spec in enumerate(specs) if len(_batch_dims(spec)) != 1]


def join(values: Sequence[Tensors], specs: Sequence[TensorSpec]) -> Tensors:
    """Each tensor of an edge, put together from what each party has of it, in the given order.

    Raises:
        ValueError: a tensor that cannot be joined.
    """
    places = _places(specs)
    if len(values) == 1:
        return tuple(values[0])
    return tuple(torch.cat(tensors, dim) for tensors, (dim, _) in zip(zip(*values, strict=True), places, strict=True))


def split(tensors: Tensors, specs: Sequence[TensorSpec], rows: Sequence[int]) -> list[Tensors]:
    """What `join` put together, apart again: for each party the tensors of its rows, contiguous.

    Raises:
        ValueError: a tensor that cannot be joined, or that has not as many rows as the parties.
    """
    parts = []
    for tensor, (dim, factor) in zip(tensors, _places(specs), strict=True):
        if tensor.shape[dim] != factor * sum(rows):
            raise ValueError(f"{tensor.shape[dim]} entries are not those of {sum(rows)} rows of {factor} each")
        parts.append([part.contiguous() for part in torch.split(tensor, [factor * count for count in rows], dim)])
    return list(zip(*parts, strict=True)) if parts else [() for _ in rows]


def averaged(
    grads: Sequence[Tensors], specs: Sequence[TensorSpec], rows: Sequence[int], fraction: float
) -> list[Tensors]:
    """Gradients at the cut, averaged over parties row by row, for the first `fraction` of each party's rows.

    Row j of a party that averages it becomes the mean over all parties that average their row j; a party with n rows
    averages its first ceil(fraction · n). A fraction of 1 is SplitFed with gradient averaging (Pal et al. 2021,
    SGLR, arXiv 2112.05929); a part of the rows is φ of EPSL (Lin et al. 2023, arXiv 2303.15991), here at the cut.
    With 0 the gradients come back as they are. `specs` are those of the tensors that have a gradient.

    Raises:
        ValueError: a tensor that cannot be joined.
    """
    if fraction == 0:
        return list(grads)
    counts = [math.ceil(Fraction(str(fraction)) * count) for count in rows]  # 0.07 of 100 rows are 7, not 8
    means = [
        _row_means(tensors, dim, [factor * count for count in counts])
        for tensors, (dim, factor) in zip(zip(*grads, strict=True), _places(specs), strict=True)
    ]
    return list(zip(*means, strict=True)) if means else list(grads)


def _row_means(grads: Sequence[Tensor], dim: int, counts: Sequence[int]) -> list[Tensor]:
    """The gradients with their first `counts` entries along `dim` replaced by means, summed in order in float64."""
    longest = grads[counts.index(max(counts))].narrow(dim, 0, max(counts))
    total = torch.zeros_like(longest, dtype=torch.float64)
    holders = torch.zeros(max(counts), dtype=torch.float64, device=longest.device)
    for grad, count in zip(grads, counts, strict=True):
        total.narrow(dim, 0, count).add_(grad.narrow(dim, 0, count))
        holders[:count] += 1
    mean = total / holders.view(-1, *[1] * (longest.ndim - dim - 1))
    results = [grad.clone(memory_format=torch.contiguous_format) for grad in grads]
    for result, count in zip(results, counts, strict=True):
        result.narrow(dim, 0, count).copy_(mean.narrow(dim, 0, count))
    return results


def _places(specs: Sequence[TensorSpec]) -> list[tuple[int, int]]:
    """For each tensor the dimension that grows with the rows, and how many entries a row has there."""
    faults = unjoinable(specs)
    if faults:
        raise ValueError(f"the rows of several parties cannot be joined in {'; '.join(faults)}")
    dims = [_batch_dims(spec)[0] for spec in specs]
    return [(dim, spec.for_rows(1).shape[dim]) for spec, dim in zip(specs, dims, strict=True)]


def _batch_dims(spec: TensorSpec) -> list[int]:
    return [i for i, dim in enumerate(spec.shape) if isinstance(dim, str)]
