"""How well a small decoder gets from what is released back to the rows behind it.

A line, fitted by ridge regression (Hoerl and Kennard 1970) to a party's own last pairs, and scored on rows that it was
not fitted to: what an attacker who holds some of them could do (Vepakomma et al. 2020, arXiv 2008.09161; He, Zhang and
Lee 2019). It is fitted anew for each score and carries nothing over, so scores change with what is released, not with
how long it has learned. A low score does not say that nobody could do better: `cutlayer.attack.decoder` is larger.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.attack.scoring import structure
from cutlayer.observe.tap import flat

COLUMNS, SIDE = 256, 28
"""Of a released row so many numbers are looked at, drawn at random once; images are shrunk to this side."""
WANTED = 1024
"""So many numbers of a table's row are rebuilt, drawn likewise."""
WINDOW = 512
"""So many pairs make one score."""
HELD_OUT = 5
"""Each so many-th row of the party's data is never fitted to, and scored."""
LEAST_SCORED = 32
FAR = 5.0
"""In deviations of a released number."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of numbers with a variance of 1; the one with the least error counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """`value` and `chance` (what the mean row scores), over `rows` rows that it was not fitted to."""

    unit: str
    value: float
    chance: float
    rows: int


@dataclass(frozen=True, slots=True)
class _Pairs:
    z: Tensor
    x: Tensor
    held: Tensor


@dataclass(kw_only=True, slots=True)
class WindowDecoder:
    """For rows of one shape. Tables: R², the mean over columns that vary; images `[B, C, H, W]`: SSIM.

    `pixels`: the images' range; None: that of the first window.
    """

    generator: torch.Generator
    pixels: tuple[float, float] | None = None
    _columns: Tensor | None = None
    _wanted: Tensor | None = None
    _parts: list[_Pairs] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether it has pairs that wait to be scored."""
        return bool(self._parts)

    @property
    def ready(self) -> bool:
        """Whether it has enough of them."""
        return sum(len(part.z) for part in self._parts) >= WINDOW

    def add(self, released: Tensor, row: Tensor, places: Tensor | None = None) -> None:
        """Pairs `[B, ...]`. `places` of the rows in the party's data; without, the last of a window are held out."""
        z, x = flat(released.detach()), _shrunk(row.detach())
        self._columns = self._drawn(z.shape[1], COLUMNS) if self._columns is None else self._columns
        if x.dim() != 4:
            x = flat(x)
            self._wanted = self._drawn(x.shape[1], WANTED) if self._wanted is None else self._wanted
            x = x[:, self._wanted.to(x.device)]
        z, x = z[:, self._columns.to(z.device)].cpu(), x.cpu()
        held = torch.zeros(len(z), dtype=torch.bool) if places is None else places.cpu() % HELD_OUT == 0
        known = z.isfinite().all(1) & flat(x).isfinite().all(1)
        self._parts.append(_Pairs(z[known], x[known], held[known]))

    def score(self) -> Decoded | None:
        """Of the pairs so far, which are forgotten by it. None where too few rows differ, or are held out."""
        z, x, held = (torch.cat(parts) for parts in zip(*((p.z, p.x, p.held) for p in self._parts), strict=True))
        z, x = z.double(), x.double()
        self._parts.clear()
        if not bool(held.any()):
            held[-(len(held) // HELD_OUT) :] = True
        if int(held.sum()) < LEAST_SCORED or int((~held).sum()) < LEAST_SCORED:
            return None
        return self._by_structure(z, x, held) if x.dim() == 4 else _by_columns(z, x, held)

    def _drawn(self, count: int, most: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)[:most].sort().values

    def _by_structure(self, z: Tensor, x: Tensor, held: Tensor) -> Decoded | None:
        if self.pixels is None:
            self.pixels = float(x.min()), float(x.max())
        low, high = self.pixels
        if not low < high:
            return None
        mean = x[~held].mean(0)
        rebuilt = _fitted(z, flat(x - mean), held).view_as(x[held]) + mean
        value, chance = (
            float(structure(guess.clamp(low, high), x[held], self.pixels).mean())
            for guess in (rebuilt, mean.expand_as(rebuilt))
        )
        return Decoded(unit="SSIM", value=value, chance=chance, rows=len(rebuilt))


def _by_columns(z: Tensor, x: Tensor, held: Tensor) -> Decoded | None:
    scaled = _scaled(x, ~held)
    varies = scaled.square().sum(0) > 0
    if not bool(varies.any()):
        return None
    truth = scaled[held][:, varies]
    errors = (_fitted(z, scaled[:, varies], held) - truth).square().mean(0)
    # Of all rows: a column may hardly vary among the few that are scored.
    spread = scaled[:, varies].var(0, correction=0)
    return Decoded(unit="R²", value=float((1 - errors / spread).mean()), chance=0.0, rows=len(truth))


def _scaled(side: Tensor, fitted: Tensor) -> Tensor:
    """`[N, F]` with mean 0 and variance 1 in the rows that are fitted to; columns that do not vary there are 0."""
    centred = side - side[fitted].mean(0)
    spread = centred[fitted].square().mean(0).sqrt()
    varies = spread > 1e-6 * side[fitted].abs().amax(0)
    return torch.where(varies, centred / torch.where(varies, spread, 1.0), 0.0)


def _fitted(z: Tensor, wanted: Tensor, held: Tensor) -> Tensor:
    """What the line makes of the rows that were held out: `[M, F]`, in the place of `wanted[held]`."""
    # What hardly varies in one part may lie far off in the other.
    z_NQ = _scaled(z, ~held).clamp(-FAR, FAR).float()  # noqa: N806
    x_NF, fitted = wanted.float(), ~held  # noqa: N806
    gram = z_NQ[fitted].T @ z_NQ[fitted] / int(fitted.sum())
    along = z_NQ[fitted].T @ x_NF[fitted] / int(fitted.sum())
    found, least = torch.zeros_like(x_NF[held]), float("inf")
    for penalty in PENALTIES:
        root, _ = torch.linalg.cholesky_ex(gram + penalty * torch.eye(len(gram)))
        guess = z_NQ[held] @ torch.cholesky_solve(along, root)
        if (error := float((guess - x_NF[held]).square().mean())) < least:
            found, least = guess, error
    return found.to(wanted.dtype)


def _shrunk(row: Tensor) -> Tensor:
    if row.dim() != 4 or max(row.shape[2:]) <= SIDE:
        return row
    return F.adaptive_avg_pool2d(row.float(), (min(SIDE, row.shape[2]), min(SIDE, row.shape[3])))
