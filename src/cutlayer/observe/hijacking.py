"""Does a server train what was agreed? Honest gradients tell of the labels what activations alone do not.

For an honest loss gᵢ = Jᵢᵀ eᵢ, where e is the error that the server's predictions make: rows with like errors have like
gradients. A server that pulls a client's segment elsewhere (feature-space hijacking; Pasquini et al. 2021, arXiv
2012.02670) makes gᵢ of the activation zᵢ alone. That similarities within and between labels tell the two apart, with
nothing changed in training, is from Fu et al. 2023 ("Focusing on Pinocchio's nose", NDSS); score and test are our own:

1. The client teaches a linear top of its own, on its own activations and labels: eᵢ is that top's error.
2. A batch's score is the partial correlation, over pairs of rows, of cos(gᵢ, gⱼ) and cos(eᵢ, eⱼ), given cos(zᵢ, zⱼ),
   centred and not, and their squares: similar rows have similar gradients in any run. It is taken with all pairs alike
   and with pairs of large gradients weighing more (where BatchNorm mixes rows, only these are a row's own); of labels
   that are numbers also with pairs of large errors weighing more. The largest counts.
3. A score below half of its usual level, cut at `CAP`, is evidence, which a `Wager` adds up. The attack may begin with
   the run, so the level begins at `PRIOR`, and then follows what the run shows (1/`MEMORY` a batch).

The claim that false alarms are counted under: the level's half is not above the scores' mean, whatever came before.
It cannot work where a client has rows of a single label, nor where gradients are averaged over clients or drowned in
noise (about ten times their norm) by a defence. What also trains the agreed task for good passes for honest.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.observe.tap import flat
from cutlayer.observe.thresholds import Wager

CAP, PRIOR, MEMORY = 0.2, 0.4, 50
LEAST_LEVEL = 0.05
"""Below this the gradients of this run tell too little of labels: nothing is concluded."""
LEAST_ROWS, MOST_ROWS = 32, 64
COLUMNS = 512
"""So many numbers of a row are looked at, always the same ones, drawn at random."""
_LARGEST_WEIGHT = 10.0
_UNLIKE = 0.1
"""So large a share of pairs must have different labels."""
_VARIED = 0.5
"""So much of the deviation of all labels must a batch of numbers have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Some rows of a mini-batch: activations float32 `[B, Q]`, labels `[B]` or `[B, K]`, and where they lie in it."""

    activations: Tensor
    labels: Tensor
    rows: Tensor
    columns: Tensor


class OwnTop:
    """A linear top that follows the activations: softmax for class numbers, least squares else (`classes` = 0)."""

    def __init__(self, features: int, classes: int) -> None:
        self._classes, self._features = classes, features
        self._weight = torch.zeros(0)
        self._mean = torch.zeros(0)
        self._origin: Tensor | None = None
        self._moments, self._count = torch.zeros((), dtype=torch.float64), 0

    def errors(self, activations: Tensor, labels: Tensor) -> Tensor:
        """Its errors on `[B, Q]` before it learns from them: `[B, C]`."""
        mean = activations.mean(0)
        self._mean = mean if not len(self._mean) else self._mean.lerp(mean, 0.05)
        centred = activations - self._mean
        centred = centred / centred.norm(dim=1).median().clamp_min(torch.finfo(torch.float32).tiny)
        x_BF = torch.cat([centred, torch.full((len(centred), 1), 0.3)], 1)  # noqa: N806
        wanted = self._wanted(labels)
        if not len(self._weight):
            self._weight = torch.zeros(wanted.shape[1], self._features + 1)
        scores = x_BF @ self._weight.T
        errors = (scores.softmax(1) if self._classes else scores) - wanted
        rate = 4.0 if self._classes else 0.5
        self._weight -= rate / len(x_BF) * errors.T @ x_BF / x_BF.square().sum(1).mean().clamp_min(1.0)
        return errors

    def _wanted(self, labels: Tensor) -> Tensor:
        if self._classes:
            return F.one_hot(labels.long(), max(2, self._classes)).float()
        # Scaled by all labels so far: those of one batch may all be the same.
        self._origin = labels[0].double() if self._origin is None else self._origin
        values = labels.double() - self._origin
        self._moments = self._moments + torch.stack([values.sum(0), values.square().sum(0)])
        self._count += len(values)
        mean, spread = self._labels()
        return ((values - mean) / torch.where(spread > 0, spread, 1.0)).float()

    def _labels(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of all labels so far, counted from the first one."""
        mean, square = self._moments / self._count
        return mean, (square - mean.square()).clamp_min(0).sqrt()

    def varied(self, labels: Tensor) -> bool:
        """Whether numbers `[B, K]` differ at least half as much as all that came so far."""
        _, spread = self._labels()
        own = labels.double().std(0, correction=0)
        return bool((spread > 0).any()) and float((own / spread)[spread > 0].mean()) >= _VARIED


def label_trace(
    activations: Tensor, gradients: Tensor, errors: Tensor, *, numbers: bool = False
) -> float | None:  # fmt: skip
    """What gradients `[B, Q]` tell of errors `[B, C]` that activations `[B, Q]` do not: in [-1, 1].

    1: pairs of rows are as like in gradients as in errors; 0: gradients know nothing of labels. None: too few rows have
    a gradient. `numbers`: labels are, and errors are near 0, with signs of no meaning, where rare ones stand out.
    """
    sizes = gradients.norm(dim=1)
    given = (sizes > 0) & sizes.isfinite()
    if int(given.sum()) < LEAST_ROWS // 2:
        return None
    z, g, e, n = activations[given], gradients[given], errors[given], sizes[given]
    one, other = torch.triu_indices(len(g), len(g), 1)
    told, wanted = (_cosines(part)[one, other].double() for part in (g, e))
    centred, plain = (_cosines(part)[one, other].double() for part in (z - z.mean(0), z))
    given_z = torch.stack([torch.ones_like(plain), centred, centred.square(), plain, plain.square()], 1)
    n, m = ((size / size.median().clamp_min(1e-30)).clamp_max(_LARGEST_WEIGHT).double() for size in (n, e.norm(dim=1)))
    weights = [torch.ones_like(plain), n[one] * n[other]]
    if numbers:
        weights.append(weights[1] * m[one] * m[other])
    return max(_partial(told, wanted, given_z, weight.sqrt()) for weight in weights)


def _cosines(rows: Tensor) -> Tensor:
    unit = F.normalize(rows.float(), dim=1)
    return unit @ unit.T


def _partial(one: Tensor, other: Tensor, given: Tensor, roots: Tensor) -> float:
    """The correlation of what least squares leave of both, each pair weighted by its root's square."""
    basis = torch.linalg.qr(given * roots[:, None]).Q
    left = [(side * roots) - basis @ (basis.T @ (side * roots)) for side in (one, other)]
    scale = float(left[0].norm() * left[1].norm())
    return float(left[0] @ left[1]) / scale if scale > 1e-12 else 0.0


@dataclass(kw_only=True, slots=True)
class Detector:
    """Of one cut's gradients. `classes`: of the labels; 0: they are numbers. `generator` draws rows and columns."""

    classes: int
    generator: torch.Generator
    false_alarms: float = 0.001
    level: float = PRIOR
    wager: Wager = field(init=False)
    _tops: dict[int, OwnTop] = field(default_factory=dict)
    _columns: dict[int, Tensor] = field(default_factory=dict)
    _pools: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wager = Wager(limit=0.5, false_alarms=self.false_alarms)

    @property
    def threshold(self) -> float | None:
        """Scores below this speak for an alarm; None while the run shows too little for one."""
        cap = min(CAP, self.level)
        return cap / 2 if cap >= LEAST_LEVEL else None

    def sample(self, activations: Tensor, labels: Tensor) -> Sample | None:
        """What to keep of a mini-batch that is sent, until its gradient is back; None where it says nothing."""
        rows = self._rows(labels)
        if rows is None:
            return None
        z = flat(activations.detach())
        width = z.shape[1]
        if width not in self._columns:
            self._columns[width] = torch.randperm(width, generator=self.generator)[:COLUMNS].sort().values
        return Sample(
            activations=_some(z, rows, self._columns[width]),
            labels=labels.detach().cpu().reshape(len(labels), -1)[rows],
            rows=rows,
            columns=self._columns[width],
        )

    def add(self, sample: Sample, gradients: Tensor) -> float | None:
        """The gradient `[B, ...]` that came for it. The score, once enough rows are together."""
        z, g = sample.activations, _some(flat(gradients.detach()), sample.rows, sample.columns)
        if not bool(z.isfinite().all()):
            return None
        labels = sample.labels[:, 0] if self.classes else sample.labels
        width = z.shape[1]
        top = self._tops.setdefault(width, OwnTop(width, self.classes))
        pool = self._pools.setdefault(width, [])
        pool.append((z, g, top.errors(z, labels), labels))
        if sum(len(part[0]) for part in pool) < LEAST_ROWS:
            return None
        del self._pools[width]
        z, g, e, labels = (torch.cat(parts) for parts in zip(*pool, strict=True))
        varied = _mixed(e) if self.classes else top.varied(labels)
        return self._judge(z, g, e) if varied else None

    def _judge(self, z: Tensor, g: Tensor, e: Tensor) -> float | None:
        score = label_trace(z, g, e, numbers=not self.classes)
        if score is None:
            return None
        cap = min(CAP, self.level)
        if cap >= LEAST_LEVEL:
            self.wager.add(1 - max(0.0, min(score, cap)) / cap)
        self.level += (min(PRIOR, max(0.0, score)) - self.level) / MEMORY
        return score

    def _rows(self, labels: Tensor) -> Tensor | None:
        known = labels.detach().cpu().reshape(len(labels), -1)
        usable = known.isfinite().all(1)
        if self.classes:
            if known.shape[1] != 1:
                return None
            usable = (known[:, 0] >= 0) & (known[:, 0] < max(2, self.classes))
        places = usable.nonzero()[:, 0]
        chosen = places[torch.randperm(len(places), generator=self.generator)[:MOST_ROWS].sort().values]
        return chosen if len(chosen) else None


def _some(side: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if len(rows) < len(side):
        side = side[rows.to(side.device)]
    return side[:, columns.to(side.device)].float().cpu()


def _mixed(errors: Tensor) -> bool:
    """Whether enough pairs have different labels: of each row that is the class with the most negative error."""
    counts = errors.argmin(1).bincount().double()
    return float((counts / counts.sum()).square().sum()) <= 1 - _UNLIKE
