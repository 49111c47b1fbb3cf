"""Inputs that an attack rebuilt, scored against the true ones: images by SSIM, tables by R² per column."""

from dataclasses import replace

import torch
from torch import Tensor

from cutlayer.attack import scoring
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError

Measure = str
"""`ssim`, `mse` or `r2`; `""`: SSIM for images, R² for all else."""

MEASURES = ("", "ssim", "mse", "r2")

SHOWN_MOST = 16


def measure_fault(word: str, measure: str) -> list[str]:
    """A sentence where a measure is none of them."""
    return [] if measure in MEASURES else [f"{word}: measure = {measure!r}: ssim, mse, r2, or none of them"]


def is_image(inputs: Tensor) -> bool:
    """Whether `[N, ...]` are images `[N, C, H, W]`."""
    return inputs.dim() == 4


def seen_inputs(word: str, traffic: Traffic) -> tuple[Tensor, Tensor]:
    """Activations and the inputs behind them, as float32. Raises `DataError` where the recording lacks them."""
    activations, inputs = scoring.needed(word, traffic, "activations", "inputs")
    if not inputs.is_floating_point() or not activations.is_floating_point():
        raise DataError(f"{word} rebuilds numbers, not ids: record a cut whose inputs are floats")
    if not activations.isfinite().all() or not inputs.isfinite().all():
        raise DataError(f"{word} met numbers that are none (nan) or infinite: the run that was recorded diverged")
    return activations.cpu().float(), inputs.cpu().float()


def some(traffic: Traffic, most: int, seed: int) -> Traffic:
    """At most so many rows, drawn by the seed."""
    if len(traffic) <= most:
        return traffic
    order = torch.randperm(len(traffic), generator=torch.Generator().manual_seed(seed))
    return traffic.chosen(order[:most].sort().values)


def auxiliary_rows(knowledge: Knowledge, inputs: Tensor) -> Tensor:
    """Rows like the owner's, as float32 `[M, ...]`: the auxiliary ones; without them the owner's own.

    Raises `DataError` where they are unlike the owner's.
    """
    if knowledge.auxiliary is None:
        return inputs
    rows = knowledge.auxiliary[0].float().cpu()
    if rows.shape[1:] != inputs.shape[1:]:
        raise DataError(
            f"auxiliary rows have shape {list(rows.shape[1:])}, the owner's {list(inputs.shape[1:])}: make them alike"
        )
    return rows


def rebuilt_score(
    name: str, truth: Tensor, rebuilt: Tensor, *, knowledge: Knowledge, seed: int, measure: Measure = ""
) -> Score:
    """The mean over rows with its 95% interval, beside what one answers who sees nothing: always the same row.

    That row is the mean of the auxiliary rows or of the owner's; and for SSIM, which prefers sharp edges, the median.
    """
    measure = measure or ("ssim" if is_image(truth) else "r2")
    if measure == "ssim":
        if not is_image(truth):
            raise DataError(f"{name}: SSIM is for images [N, C, H, W]: measure = 'r2'")
        score = scoring.ssim(name, rebuilt, truth, seed, knowledge.pixels)
        likely = auxiliary_rows(knowledge, truth)
        guesses = [likely.mean(0), likely.median(0).values]
        chances = [float(scoring.structure(g.expand_as(truth), truth, knowledge.pixels).mean()) for g in guesses]
        score = replace(score, chance=max(score.chance, *chances))
    elif measure == "mse":
        score = scoring.mse(name, rebuilt, truth, seed, knowledge.pixels)
    elif is_image(truth):
        score = scoring.r2(name, rebuilt, truth, seed)
    else:
        score = r2_of_columns(name, rebuilt, truth, seed)
    return replace(score, shown=(truth[:SHOWN_MOST].clone(), rebuilt[:SHOWN_MOST].clone()))


def r2_of_columns(name: str, rebuilt: Tensor, truth: Tensor, seed: int) -> Score:
    """The mean over columns of 1 − squared error / squared distance from the column's mean, with a bootstrap over rows.

    The attacker's errors weigh as much in a column of small numbers as in one of large ones. Columns that do not vary
    are left out. Chance is 0: the true mean scores that, any other constant less. Raises `DataError` if none varies.
    """
    x, guess = truth.flatten(1).double(), rebuilt.flatten(1).double()
    centred = x - x.mean(0)
    varies = centred.square().mean(0) > 1e-12 * (1 + x.square().mean(0))
    if not varies.any():
        raise DataError(f"{name} cannot be scored by rows that are all equal: record others")
    errors, squares = (x - guess)[:, varies].square(), centred[:, varies].square()

    def mean_r2(draw: Tensor) -> float:
        spread = squares[draw].mean(0)
        told = spread > 0
        return float((1 - errors[draw].mean(0)[told] / spread[told]).mean())

    low, high = scoring.bootstrap(mean_r2, len(x), seed)
    value = mean_r2(torch.arange(len(x)))
    return Score(attack=name, unit="R²", value=value, low=low, high=high, chance=0.0, rows=len(x))
