"""Inversion by optimisation: the inputs whose activations are those that crossed, found by gradient descent.

He, Zhang and Lee 2019 (ACSAC, "Model inversion attacks against collaborative inference", section 4: regularised maximum
likelihood estimation): argmin over x of ED(f(x), z) + λ TV(x), with the client's bottom f known.
"""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.rebuilt import (
    Measure,
    auxiliary_rows,
    is_image,
    measure_fault,
    rebuilt_score,
    seen_inputs,
    some,
)
from cutlayer.attack.scoring import latest
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError

AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimise(Attack):
    """`steps` of Adam, whose `lr` falls to zero along a cosine; `tv` weighs total variation, of images alone.

    Distances are relative to the activations' own size and `lr` to the inputs' range, so that defaults fit any model.
    `rows`: how many are attacked, at most.
    """

    steps: int = 200
    lr: float = 0.1
    tv: float = 0.1
    rows: int = 64
    measure: Measure = ""
    word: ClassVar[str] = "optimise"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "known bottom"})

    def __post_init__(self) -> None:
        found = measure_fault(self.word, self.measure)
        found += descent_faults(
            self.word, whole={"steps": self.steps, "rows": self.rows}, rates={"lr": self.lr}, tv=self.tv
        )
        if found:
            raise PlanError(found)

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        """SSIM of images or R² of tables, over rows of the traffic; each row once."""
        if knowledge.known is None:
            raise DataError("optimise needs the client's bottom: give it, or use unsplit_inputs")
        scored = some(latest(traffic), self.rows, seed)
        z, truth = seen_inputs(self.word, scored)
        bottom = copy.deepcopy(knowledge.known).cpu().eval().float().requires_grad_(requires_grad=False)
        parts = zip(torch.split(z, AT_ONCE), torch.split(truth, AT_ONCE), strict=True)
        rebuilt = torch.cat([self._found(bottom, part, Canvas.made(knowledge, like)) for part, like in parts])
        return rebuilt_score(self.name, truth, rebuilt, knowledge=knowledge, seed=seed, measure=self.measure)

    def _found(self, bottom: nn.Module, z: Tensor, canvas: "Canvas") -> Tensor:
        paint = torch.zeros_like(canvas.start).requires_grad_()
        optimizer = torch.optim.Adam([paint], self.lr)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            x = canvas.inputs(paint)
            loss = distance(bottom(x), z).sum() + self.tv * canvas.roughness(x)
            if not loss.requires_grad:  # a bottom that tells nothing at all
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            canvas.within(paint)
            falling.step()
        return canvas.inputs(paint.detach())


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """Inputs that are being found, in units of their own range: `start + scale · paint`, within `limits`."""

    start: Tensor
    scale: Tensor
    limits: tuple[float, float] | None

    @classmethod
    def made(cls, knowledge: Knowledge, like: Tensor) -> "Canvas":
        """For as many inputs as there are in `like`, of which only the shape is looked at.

        They start at the mean of the auxiliary rows; without any, images start in the middle of their range, as in the
        papers, and tables at 0. Columns of tables are in units of the auxiliary rows' deviation, or of 1.
        """
        low, high = knowledge.pixels
        limits = knowledge.pixels if is_image(like) else None
        scale = torch.tensor(high - low if limits else 1.0)
        if knowledge.auxiliary is None:
            middle = (low + high) / 2 if limits else 0.0
            return cls(start=torch.full_like(like, middle), scale=scale, limits=limits)
        likely = auxiliary_rows(knowledge, like)
        if not limits:
            deviation = likely.std(0, correction=0)
            scale = torch.where(deviation > 0, deviation, 1.0)
        return cls(start=likely.mean(0).expand_as(like).clone(), scale=scale, limits=limits)

    def inputs(self, paint: Tensor) -> Tensor:
        return self.start + self.scale * paint

    def roughness(self, x: Tensor) -> Tensor:
        """Total variation of images in units of their range, summed over rows; 0 for tables."""
        return variation(x / self.scale).sum() if self.limits else x.new_zeros(())

    @torch.no_grad()
    def within(self, paint: Tensor) -> None:
        """Put the inputs back into their range."""
        if self.limits:
            low, high = self.limits
            paint.clamp_((low - self.start) / self.scale, (high - self.start) / self.scale)


def distance(made: Tensor, came: Tensor) -> Tensor:
    """Squared distance of each row's activations from those that came, over their mean squared size: `[B]`.

    Raises `DataError` where the bottom makes others.
    """
    if made.shape != came.shape:
        raise DataError(
            f"the bottom given makes activations {list(made.shape[1:])}, those that crossed are "
            f"{list(came.shape[1:])}: give the bottom up to this cut"
        )
    size = came.flatten(1).square().sum(1).mean().clamp_min(torch.finfo(came.dtype).tiny)
    return (made - came).flatten(1).square().sum(1) / size


def variation(x_BCHW: Tensor) -> Tensor:  # noqa: N803
    """Total variation per pixel, isotropic (He et al. 2019, β = 1): `[B]`."""
    down = x_BCHW.diff(dim=2, append=x_BCHW[:, :, -1:])
    right = x_BCHW.diff(dim=3, append=x_BCHW[..., -1:])
    return (down.square() + right.square() + 1e-8).sqrt().flatten(1).mean(1)


def descent_faults(word: str, *, whole: dict[str, int], rates: dict[str, float], **weights: float) -> list[str]:
    """A sentence for each option of a descent that is out of range."""
    found = [f"{word}: {name} = {value!r}: at least 1" for name, value in whole.items() if value < 1]
    found += [
        f"{word}: {name} = {value!r}: a finite number above 0"
        for name, value in rates.items()
        if not 0 < value < math.inf
    ]
    found += [
        f"{word}: {name} = {value!r}: a finite number, at least 0"
        for name, value in weights.items()
        if not 0 <= value < math.inf
    ]
    return found
