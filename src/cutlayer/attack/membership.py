"""Whether a row was trained on, from the loss of the final model: models fit the rows that they have seen better.

The threshold on the loss is of Yeom et al. 2018 (arXiv 1709.01604); the score at few false alarms of Carlini et al.
2022 (arXiv 2112.03570, section III); the loss less that of a model which saw none of the rows, of Watson et al. 2022
(arXiv 2111.08440). Carlini's own attack wants many shadow models, and would find more.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from scipy.stats import binom
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.scoring import auc, wilson
from cutlayer.attack.traffic import Score
from cutlayer.errors import DataError

Rows = tuple[Tensor, Tensor]
"""Inputs `[N, ...]` and their targets `[N, ...]`."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets to a loss for each row `[N]`."""

ALARMS = 0.01
"""The share of false alarms at which an attack must find members."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row of a classifier's logits."""
    return F.cross_entropy(outputs, targets, reduction="none")


def membership(
    model: nn.Module,
    members: Rows,
    others: Rows,
    *,
    loss: Loss = cross_entropy,
    reference: nn.Module | None = None,
) -> tuple[Score, Score]:
    """The AUC of a low loss for members, and the share of members found at 1% false alarms.

    `members` were trained on; `others` are rows like them that were not. `reference`: a model like it which saw
    neither; then the score is how much lower the loss is than that model's. Models run in evaluation mode, on copies.
    Raises `DataError` where a set is empty, or a loss is not one number for each row.
    """
    name = "membership" if reference is None else "membership(reference)"
    known, unknown = (_fits(name, model, rows, loss) for rows in (members, others))
    if reference is not None:
        known = known - _fits(name, reference, members, loss)
        unknown = unknown - _fits(name, reference, others, loss)
    hit = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))]).bool()
    return auc(name, torch.cat([known, unknown]), hit), found_at_few_alarms(name, known, unknown)


def found_at_few_alarms(attack: str, members: Tensor, others: Tensor, alarms: float = ALARMS) -> Score:
    """The share of members `[N]` that score above a threshold which a share `alarms` of the others `[M]` exceed.

    The threshold is itself an estimate. Its own 97.5% interval, of two order statistics, and Wilson's of the share at
    either make the 95% interval (Bonferroni). With M under 437 the lower end is therefore 0, whatever was found.
    """
    others, total = others.sort().values, len(others)
    allowed = math.floor(alarms * total + 1e-9)
    fewest, most = (int(binom.ppf(tail, total, alarms)) for tail in (0.0125, 0.9875))

    def share(above: int) -> float:
        """Of the members above the largest other but `above`: none of the others' ties with the threshold counts."""
        return float((members > others[total - 1 - above]).double().mean()) if above < total else 1.0

    low, _ = wilson(share(fewest - 1), len(members), 0.975) if fewest else (0.0, 0.0)
    _, high = wilson(share(most), len(members), 0.975)
    unit = f"members found at {alarms:.0%} false alarms"
    value = share(allowed)
    score = Score(attack=attack, unit=unit, value=value, low=min(low, value), high=high, chance=alarms)
    return replace(score, rows=len(members) + total)


def _fits(attack: str, model: nn.Module, rows: Rows, loss: Loss) -> Tensor:
    """How well a model fits each row: −loss, float64 `[N]`."""
    inputs, targets = rows
    if not len(inputs):
        raise DataError(f"{attack} needs rows that were trained on and rows that were not: give at least one of each")
    quiet, found = copy.deepcopy(model).eval(), []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for some, wanted in zip(torch.split(inputs, 256), torch.split(targets, 256), strict=True):
            found.append(loss(quiet(some), wanted))
            if found[-1].shape != (len(some),):
                raise DataError(f"{attack} needs one loss for each row: give a `loss` that neither sums nor averages")
    return -torch.cat(found).double().cpu()
