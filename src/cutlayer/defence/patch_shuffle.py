"""Patch shuffling: each row's tokens, or patches of an image, in an order of its own.

Yao, Xiang, Xu, Ye and Chen 2022 (ICDM, Privacy-Preserving Split Learning via Patch Shuffling over Transformers): a
transformer without positions after the cut gives its tokens' outputs in the same other order, and what pools them does
not see any. A model that needs the order does not learn. A heuristic: what a token says of its own patch stays, and who
has seen such images can lay the puzzle.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence import noise, rows
from cutlayer.defence.defence import Context, Defence, Kind, State, strength_fault
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Way


@dataclass(frozen=True, kw_only=True)
class PatchShuffle(Defence):
    """`share`: of a row's tokens that change places with each other, drawn anew for each row. `keep`: so many first
    tokens stay where they are (1 for a class token). `patch`: the side of a patch of `[B, C, H, W]`; of no matter for
    tokens `[B, T, D]`.

    The gradient that comes back is put in the row's own order again by its derivative.
    """

    share: float = 1.0
    keep: int = 0
    patch: int = 1
    word: ClassVar[str] = "patch_shuffle"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset({"forward"})

    def __post_init__(self) -> None:
        found = strength_fault(self.word, share=self.share, keep=self.keep)
        if self.share > 1:
            found.append(f"patch_shuffle: share = {self.share}: at most 1")
        if self.patch < 1:
            found.append(f"patch_shuffle: patch = {self.patch}: at least 1")
        if found:
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return not self.share

    def fault(self, shape: TensorShape) -> str | None:
        if told := rows.float_fault(self.word, shape):
            return told
        dims = len(shape.shape)
        if dims not in (3, 4):
            return (
                f"patch_shuffle shuffles tokens [B, T, D] or images [B, C, H, W], and {shape} is neither: drop it here"
            )
        if dims == 4 and (shape.shape[2] % self.patch or shape.shape[3] % self.patch):
            return f"patch_shuffle: patch = {self.patch} does not divide both sides of {shape}: choose one that does"
        tokens = shape.shape[1] if dims == 3 else math.prod(shape.shape[2:]) // self.patch**2
        if not self.neutral and self._moved(tokens) < 2:
            return f"patch_shuffle moves fewer than two of the {tokens} tokens of {shape}: keep fewer, or raise share"
        return None

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        if self.neutral:
            return tensor
        if tensor.dim() == 3:
            return self._shuffled(tensor, context.generator)
        x_BTD = _patches(tensor, self.patch)  # noqa: N806
        return _image(self._shuffled(x_BTD, context.generator), tensor.shape, self.patch)

    def _moved(self, tokens: int) -> int:
        return round(self.share * max(tokens - self.keep, 0))

    def _shuffled(self, x_BTD: Tensor, generator: torch.Generator) -> Tensor:  # noqa: N803
        batch, tokens, features = x_BTD.shape
        drawn = noise.uniform((batch, max(tokens - self.keep, 0)), generator)
        chosen = drawn.argsort(1)[:, : self._moved(tokens)] + self.keep
        # The places that were drawn, in order, take what is at the same places in the order of the draw.
        places = torch.arange(tokens).repeat(batch, 1).scatter(1, chosen.sort(1).values, chosen)
        return x_BTD.gather(1, places.to(x_BTD.device)[:, :, None].expand(batch, tokens, features))


def _patches(x_BCHW: Tensor, side: int) -> Tensor:  # noqa: N803
    """`[B, T, D]` with a patch in each of the T places."""
    batch, channels, height, width = x_BCHW.shape
    split = x_BCHW.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return split.reshape(batch, (height // side) * (width // side), channels * side * side)


def _image(x_BTD: Tensor, shape: torch.Size, side: int) -> Tensor:  # noqa: N803
    """What `_patches` took apart."""
    batch, channels, height, width = shape
    split = x_BTD.reshape(batch, height // side, width // side, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return split.reshape(shape)
