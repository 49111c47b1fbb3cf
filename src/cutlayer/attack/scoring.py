"""How well an attack did, with a 95% interval, beside what guessing gives.

Rows are what is independent here, not crossings: a row that crossed in ten epochs counts once in every interval.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError

RESAMPLES = 1000
"""How often a bootstrap draws anew."""


def needed(attack: str, traffic: Traffic, *names: str) -> list[Tensor]:
    """The traffic's tensors of these names. Raises `DataError` that names those which it lacks."""
    if missing := [name for name in names if getattr(traffic, name) is None]:
        raise DataError(f"{attack} needs {' and '.join(missing)}, which the recording lacks: record the run with them")
    if not len(traffic):
        raise DataError(f"{attack} found no row in the recording: record more steps")
    return [getattr(traffic, name) for name in names]


def class_numbers(attack: str, labels: Tensor) -> Tensor:
    """Labels `[N]` or `[N, 1]` as int64 `[N]`. Raises `DataError` where they are no class numbers."""
    numbers = labels.detach().cpu().reshape(len(labels), -1)
    if numbers.shape[1] != 1 or not torch.equal(numbers.double(), numbers.double().round()):
        raise DataError(f"{attack} needs labels that are class numbers, one for a row: these are none")
    return numbers[:, 0].to(torch.int64)


def rarest(attack: str, labels: Tensor) -> int:
    """The rarest class of labels `[N]`, the smallest of equally rare ones. Raises `DataError` for fewer than two."""
    classes, counts = torch.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"{attack} found rows of one class only: record more steps")
    return int(classes[counts.argmin()])


def by_step(steps: Tensor) -> list[Tensor]:
    """The places of each step's rows in `[N]`, in the order of the steps."""
    order = steps.cpu().argsort(stable=True)
    _, counts = torch.unique_consecutive(steps.cpu()[order], return_counts=True)
    return list(torch.split(order, counts.tolist()))


def latest(traffic: Traffic) -> Traffic:
    """Each row as it crossed last, in that order; all of the traffic where it does not say which rows crossed."""
    if traffic.rows is None:
        return traffic
    _, which = torch.unique(traffic.rows.cpu(), return_inverse=True)
    last = torch.zeros(int(which.max()) + 1 if len(which) else 0, dtype=torch.int64)
    return traffic.chosen(last.scatter_reduce(0, which, torch.arange(len(which)), "amax").sort().values)


def auc(
    attack: str,
    scores: Tensor,
    truth: Tensor,
    *,
    steps: Tensor | None = None,
    rows: Tensor | None = None,
    level: float = 0.95,
) -> Score:
    """The area under the ROC curve of scores `[N]` for `truth` bool `[N]`; ties count half.

    With `steps` `[N]` it is the mean of the areas within each step that has both classes. With `rows` `[N]`, crossings
    of one row are taken as one observation. The interval is Wilson's at the number of rows that would give DeLong's
    variance (DeLong et al. 1988; over rows that cross again: Obuchowski 1997). That number is kept between the smaller
    class's size, where the variance is largest (Birnbaum and Klose 1957), and what the variance of Hanley and McNeil
    1982 gives: DeLong's alone is far too narrow near 1 and for small classes.

    Raises `DataError` where no step has both classes, or for a score that is not a number.
    """
    values, hit = scores.detach().cpu().reshape(-1).double(), truth.detach().cpu().reshape(-1).bool()
    if bool(values.isnan().any()):
        raise DataError(f"{attack} met numbers that are none (nan): the run that was recorded diverged")
    step = torch.zeros_like(hit, dtype=torch.int64) if steps is None else steps.detach().cpu()
    at = _comparable(hit, step)
    if not len(at):
        raise DataError(f"{attack} found no step with rows of both classes: record more steps, or larger mini-batches")
    values, hit, keys = values[at], hit[at], at if rows is None else rows.detach().cpu()[at]
    placed, weights = _placements(values, hit, torch.unique(step[at], return_inverse=True)[1])
    area = min(1.0, round(float((weights * placed)[hit].sum()), 12))
    sides = [_side(weights[side], placed[side] - area, keys[side]) for side in (hit, ~hit)]
    low, high = wilson(area, _rows_worth(area, sides), level)
    return Score(attack=attack, unit="AUC", value=area, low=low, high=high, chance=0.5, rows=len(torch.unique(keys)))


def folded(score: Score) -> Score:
    """The leak AUC, max(AUC, 1 − AUC): for an attacker who need not know beforehand which class scores higher.

    The interval is of the folded area of all rows there might be, whose chance is exactly 0.5. Its lower end is 0.5
    unless the unfolded interval excludes 0.5, so `leaks` errs as often as that interval does. The value has no such
    guard: by chance alone it is expected at 0.5 + √(2/π) σ, with σ² = (n₁ + n₀ + 1) / (12 n₁ n₀) in one step.
    """
    low, high = (1 - score.high, 1 - score.low) if score.value < 0.5 else (score.low, score.high)
    value = max(score.value, 1 - score.value)
    return replace(score, unit="leak AUC", value=value, low=max(low, 0.5), high=max(high, 1 - low))


def _comparable(truth: Tensor, step: Tensor) -> Tensor:
    """The places of rows of steps with both classes."""
    _, which = torch.unique(step, return_inverse=True)
    ones, all_rows = torch.bincount(which, truth.double()), torch.bincount(which)
    return ((ones > 0) & (ones < all_rows))[which].nonzero()[:, 0]


def _placements(scores: Tensor, truth: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, the share of its step's other class that it is on the right side of, and its weight in the mean.

    `step` counts from 0. Ranks within steps are ranks of (step, score), less the rows of the steps before.
    """
    _, level = torch.unique(scores, return_inverse=True)
    keys = step * (int(level.max()) + 1) + level
    overall, placed = _midranks(keys, step), torch.empty(len(scores), dtype=torch.float64)
    counts = torch.stack([torch.bincount(step[truth == side]) for side in (False, True)]).double()
    for side in (False, True):
        of = truth == side
        below = overall[of] - _midranks(keys[of], step[of])
        share = below / counts[1 - side][step[of]]
        placed[of] = share if side else 1 - share
    return placed, 1 / (counts[truth.long(), step] * counts.shape[1])


def _midranks(keys: Tensor, step: Tensor) -> Tensor:
    """The rank of each row within its step, from 1; equal rows share the mean of theirs."""
    _, which, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    before = torch.bincount(step).cumsum(0) - torch.bincount(step)
    middles: Tensor = counts.cumsum(0) - (counts.double() - 1) / 2
    return middles[which] - before[step]


def _side(weights: Tensor, deviations: Tensor, keys: Tensor) -> tuple[float, float]:
    """Of one class: its part of the area's variance, and how many equally weighted rows it is worth (Kish 1965)."""
    _, group = torch.unique(keys, return_inverse=True)
    count = int(group.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, group, weights * deviations)
    shares = torch.zeros(count, dtype=torch.float64).index_add(0, group, weights)
    variance = float(sums.square().sum()) * count / (count - 1) if count > 1 else math.inf
    return variance, 1 / float(shares.square().sum())


def _rows_worth(area: float, sides: list[tuple[float, float]]) -> float:
    (one_variance, ones), (zero_variance, zeros) = sides
    least, spread = min(ones, zeros), area * (1 - area)
    if spread <= 0:
        return least
    variance = one_variance + zero_variance
    smooth = max(_hanley_mcneil(area, ones, zeros), _hanley_mcneil(1 - area, ones, zeros))
    return max(least, spread / max(variance, smooth))


def _hanley_mcneil(area: float, ones: float, zeros: float) -> float:
    square = area * area
    among_ones, among_zeros = area / (2 - area) - square, 2 * square / (1 + area) - square
    return (area * (1 - area) + (ones - 1) * among_ones + (zeros - 1) * among_zeros) / (ones * zeros)


def wilson(share: float, rows: float, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share seen in so many rows (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, scale = share + z * z / (2 * rows), 1 + z * z / rows
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def accuracy(attack: str, guesses: Tensor, labels: Tensor) -> Score:
    """The share of N different rows whose class is guessed, both `[N]`; chance: to always say the commonest class."""
    guesses, labels = guesses.cpu(), labels.cpu()
    if not len(labels):
        raise DataError(f"{attack} has no row left to be scored by: record more rows")
    right = float((guesses == labels).double().mean())
    low, high = wilson(right, len(labels))
    chance = float(torch.unique(labels, return_counts=True)[1].max()) / len(labels)
    return Score(attack=attack, unit="accuracy", value=right, low=low, high=high, chance=chance, rows=len(labels))


def mse(attack: str, made: Tensor, truth: Tensor, seed: int, pixels: tuple[float, float] = (0.0, 1.0)) -> Score:
    """The mean squared error of N rebuilt rows, both `[N, ...]`, in units of the pixel range; smaller leaks more.

    Chance: to say the mean of the rows each time. The interval is of a bootstrap over rows.
    """
    scale = (pixels[1] - pixels[0]) ** 2
    errors, spread = (_squares(made - truth) / scale, _squares(truth - truth.mean(0)) / scale)
    low, high = bootstrap(lambda draw: float(errors[draw].mean()), len(errors), seed)
    value, chance, rows = float(errors.mean()), float(spread.mean()), len(errors)
    return Score(attack=attack, unit="MSE", value=value, low=low, high=high, chance=chance, better="smaller", rows=rows)


def r2(attack: str, made: Tensor, truth: Tensor, seed: int) -> Score:
    """1 − squared error / squared distance from the mean row, over all features; chance 0; a bootstrap over rows."""
    errors, spread = _squares(made - truth), _squares(truth - truth.mean(0))
    if not float(spread.sum()):
        raise DataError(f"{attack} cannot be scored by rows that are all equal: record others")
    low, high = bootstrap(lambda draw: float(1 - errors[draw].sum() / spread[draw].sum()), len(errors), seed)
    value = float(1 - errors.sum() / spread.sum())
    return Score(attack=attack, unit="R²", value=value, low=low, high=high, chance=0.0, rows=len(errors))


def ssim(attack: str, made: Tensor, truth: Tensor, seed: int, pixels: tuple[float, float] = (0.0, 1.0)) -> Score:
    """The mean structural similarity of N images `[N, C, H, W]`; chance: the mean image; a bootstrap over images."""
    alike = structure(made, truth, pixels)
    guess = structure(truth.mean(0, keepdim=True).expand_as(truth), truth, pixels)
    low, high = bootstrap(lambda draw: float(alike[draw].mean()), len(alike), seed)
    value, chance = float(alike.mean()), float(guess.mean())
    return Score(attack=attack, unit="SSIM", value=value, low=low, high=high, chance=chance, rows=len(alike))


def structure(one: Tensor, other: Tensor, pixels: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """The structural similarity of pairs of images `[N, C, H, W]` with values in `pixels`: float64 `[N]`.

    Wang et al. 2004, eq. 13, with their Gaussian window (11 by 11, σ 1.5, cut to the largest odd one that fits), K₁ =
    0.01 and K₂ = 0.03, on values counted from the range's lower end, wherever the window lies inside the image; the
    mean over channels.
    """
    size = min(11, *(side - (side + 1) % 2 for side in one.shape[2:]))
    line = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * 1.5**2))
    down, across = (_sliding(line / line.sum(), side) for side in one.shape[2:])
    first, second = ((1e-2 * (pixels[1] - pixels[0])) ** 2, (3e-2 * (pixels[1] - pixels[0])) ** 2)

    def smooth(image: Tensor) -> Tensor:
        return down @ image @ across.T

    found = []
    for x, y in zip(torch.split(one.detach().cpu(), 256), torch.split(other.detach().cpu(), 256), strict=True):
        x, y = (image.double().flatten(0, 1)[:, None] - pixels[0] for image in (x, y))
        mean_x, mean_y = smooth(x), smooth(y)
        var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
        both = smooth(x * y) - mean_x * mean_y
        light = (2 * mean_x * mean_y + first) / (mean_x**2 + mean_y**2 + first)
        found.append((light * (2 * both + second) / (var_x + var_y + second)).mean((1, 2, 3)).view(-1, one.shape[1]))
    return torch.cat(found).mean(1)


def _sliding(line: Tensor, side: int) -> Tensor:
    """A row for each place of a window of weights `[size]` in `[side]` numbers: a window that is a product of two such
    lines is two matrix products, much faster in float64 than a convolution."""
    places = side - len(line) + 1
    rows = torch.zeros(places, side, dtype=line.dtype)
    for place in range(places):
        rows[place, place : place + len(line)] = line
    return rows


def bootstrap(statistic: Callable[[Tensor], float], rows: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a statistic of rows' places int64 `[rows]`, drawn anew `RESAMPLES` times (Efron)."""
    if not rows:
        raise DataError("a score needs at least one row: record more")
    draws = np.random.default_rng(seed)
    found = [statistic(torch.from_numpy(draws.integers(rows, size=rows))) for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _squares(difference: Tensor) -> Tensor:
    return difference.detach().cpu().double().flatten(1).square().mean(1)
