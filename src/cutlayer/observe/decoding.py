"""How well a small decoder, taught as the run goes, gets from what is released back to the rows behind it.

It is taught and scored on the party's own pairs: what an attacker who holds some of them could do (Vepakomma et al.
2020, arXiv 2008.09161; He, Zhang and Lee 2019). It is small, and behind the run by as much as it learns slowly: a low
score does not say that nobody could do better. `cutlayer.attack.decoder` has a larger one.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.learner import Learner, own_randomness
from cutlayer.attack.scoring import structure

COLUMNS, WIDTH, SIDE = 1024, 64, 28
"""Of a released row so many numbers are looked at; images are shrunk to this side."""
HELD_OUT = 5
"""Each so many-th row of the party's data is never learned from, and scored."""
SCORED = 64
LR = 2e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """`value` and `chance` (what the mean row scores), over `rows` rows that it did not learn from."""

    unit: str
    value: float
    chance: float
    rows: int


@dataclass(kw_only=True, slots=True)
class OnlineDecoder:
    """For rows of one shape. R² for tables; SSIM for images `[B, C, H, W]` with values in `pixels`."""

    generator: torch.Generator
    pixels: tuple[float, float] = (0.0, 1.0)
    _learner: Learner | None = None
    _columns: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    _mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    _spread: Tensor = field(default_factory=lambda: torch.ones(0))
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, released: Tensor, row: Tensor, places: Tensor | None = None) -> Decoded | None:
        """Pairs `[B, ...]`. The score, once enough rows came that are not learned from.

        Without `places` each batch is scored before it is learned from: fresh rows only in the first epoch.
        """
        z, x = released.detach().flatten(1), _shrunk(row.detach()).float().cpu()
        if self._learner is None:
            self._begin(z, x)
        z = z[:, self._columns.to(z.device)].float().cpu()
        held = torch.ones(len(z), dtype=torch.bool) if places is None else _held_out(places)
        if bool(held.any()):
            self._waiting.append((self._guess(z[held], x[held]), x[held]))
        learned = held if places is None else ~held
        if int(learned.sum()) > 1:
            self._learn(z[learned], x[learned])
        return self._scored() if sum(len(x) for _, x in self._waiting) >= SCORED else None

    def _begin(self, z: Tensor, x: Tensor) -> None:
        self._columns = torch.randperm(z.shape[1], generator=self.generator)[:COLUMNS].sort().values
        features, wanted = len(self._columns), x[0].numel()
        self._mean = x.mean(0)
        # One scale for all: a constant column would have none.
        self._spread = (x - self._mean).std().clamp_min(1e-6)
        with own_randomness(self.generator, torch.device("cpu")):
            hidden = nn.Sequential(nn.Linear(features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, wanted))
        network = nn.Sequential(nn.BatchNorm1d(features, affine=False), hidden)
        self._learner = Learner(network, LR, torch.device("cpu"))

    def _guess(self, z: Tensor, x: Tensor) -> Tensor:
        assert self._learner is not None
        with torch.no_grad():
            guess: Tensor = self._learner.network.eval()(z)
        return guess.view_as(x) * self._spread + self._mean

    def _learn(self, z: Tensor, x: Tensor) -> None:
        assert self._learner is not None
        with torch.enable_grad():
            guess = self._learner.network.train()(z)
            loss = F.mse_loss(guess, ((x - self._mean) / self._spread).flatten(1))
            self._learner.step(self._learner.gradients(loss))

    def _scored(self) -> Decoded:
        guess, x = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        if x.dim() == 4:
            low, high = self.pixels
            mean = x.mean(0, keepdim=True).expand_as(x)
            value, chance = (float(structure(made, x, self.pixels).mean()) for made in (guess.clamp(low, high), mean))
            return Decoded(unit="SSIM", value=value, chance=chance, rows=len(x))
        error, spread = float((guess - x).square().sum()), float((x - x.mean(0)).square().sum())
        return Decoded(unit="R²", value=1 - error / spread if spread else 0.0, chance=0.0, rows=len(x))


def _shrunk(row: Tensor) -> Tensor:
    if row.dim() != 4 or max(row.shape[2:]) <= SIDE:
        return row
    return F.adaptive_avg_pool2d(row, (min(SIDE, row.shape[2]), min(SIDE, row.shape[3])))


def _held_out(places: Tensor) -> Tensor:
    return places.cpu() % HELD_OUT == 0
