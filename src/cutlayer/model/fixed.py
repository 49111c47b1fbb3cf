"""Tensors as whole numbers modulo 2^64, whose sums are exact in any order: fixed point, 36 bits after the point.

A party's words are, for each name in alphabetical order, how often it has the tensor (0 or 1), and then for each of
those names its elements, `round(coefficient · x · 2^36)`, as two's complement. So a sum of n parties differs from the
exact one by at most n · 2^-37 (7.3e-12 · n), and by what float64 rounds. A sum may reach 2^24; above that are 3 bits
that no sound sum has, so that of garbage only one element in eight passes, and of garbage counts none.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.errors import RunError

Words = NDArray[np.uint64]

FRACTION_BITS = 36
LIMIT = 2.0**24
"""The most that a sum may reach, up or down."""
ERROR = 2.0 ** -(FRACTION_BITS + 1)
"""The most by which the fixed point changes what one party adds."""
_ONE = 2.0**FRACTION_BITS


def word_count(like: Mapping[str, Tensor]) -> int:
    """How many words tensors of these names and shapes make."""
    return len(like) + sum(tensor.numel() for tensor in like.values())


def encode(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], *, coefficient: float, part: float) -> Words:
    """`coefficient` times each tensor as words. `like`: all names there can be, with tensors of their shapes.

    `part`: the party's part of the range, from 0 to 1; all parties' parts add up to 1 at most, so that no sum of theirs
    can overflow.

    Raises:
        RunError: a value that is not finite or too large; a name or a shape that is not in `like`.
    """
    words = np.zeros(word_count(like), dtype=np.uint64)
    if strange := sorted(tensors.keys() - like.keys()):
        raise RunError(f"{strange[0]!r} is not among what is summed under masks")
    for place, (name, span) in enumerate(_spans(like)):
        if name in tensors:
            words[place] = 1
            words[span] = _encoded(name, tensors[name], like[name], coefficient, LIMIT * part)
    return words


def decode(words: Words, like: Mapping[str, Tensor], *, parties: int) -> dict[str, Tensor]:
    """The sum of what so many parties have encoded, in the dtypes of `like`; without names that nobody had.

    Raises:
        RunError: it cannot be such a sum, since it is too large or counts too many.
    """
    _check(words.view(np.int64), len(like), parties)
    sums: dict[str, Tensor] = {}
    for place, (name, span) in enumerate(_spans(like)):
        if words[place]:
            values = torch.from_numpy(words[span].view(np.int64).astype(np.float64) / _ONE)
            sums[name] = values.reshape(like[name].shape).to(like[name].dtype)
    return sums


def _encoded(name: str, tensor: Tensor, like: Tensor, coefficient: float, most: float) -> Words:
    if tensor.shape != like.shape:
        raise RunError(f"{name!r} is {list(tensor.shape)}, where {list(like.shape)} are summed under masks")
    values = tensor.detach().to("cpu", torch.float64).flatten().numpy() * coefficient
    if not np.isfinite(values).all():
        raise RunError(
            f"{name!r} has values that are not finite, which no sum under masks can carry: keep it with its owner "
            "(training.personal), or leave out secure_aggregation"
        )
    if (largest := float(np.abs(values).max(initial=0.0))) > most:
        raise RunError(
            f"{name!r} has a value of {largest / abs(coefficient):.3g}, and at most {most / abs(coefficient):.3g} fits "
            "under masks: scale the features or the loss, keep it with its owner (training.personal), or leave out "
            "secure_aggregation"
        )
    return np.rint(values * _ONE).astype(np.int64).view(np.uint64)


def _check(sums: NDArray[np.int64], names: int, parties: int) -> None:
    counts, values = sums[:names], sums[names:]
    most = int(LIMIT * _ONE) + parties
    sound = (counts >= 0).all() and (counts <= parties).all() and (values >= -most).all() and (values <= most).all()
    if not sound:
        raise RunError(
            "the sum under masks is no sum: the masks did not cancel, or somebody sent something else than a share; "
            "compare the plan's digest and its pinned keys with all clients"
        )


def _spans(like: Mapping[str, Tensor]) -> Iterator[tuple[str, slice]]:
    """Each name with the place of its elements."""
    start = len(like)
    for name in sorted(like):
        yield name, slice(start, start + like[name].numel())
        start += like[name].numel()
