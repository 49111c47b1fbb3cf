"""Labels from the direction of gradients: those of one class point one way, those of the other the other way.

Li et al. 2021, "Label leakage and protection in two-party split learning" (arXiv 2102.08504), section 3.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.norm import norms
from cutlayer.attack.scoring import auc, by_step, class_numbers, folded, needed, rarest
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine(Attack):
    """The leak AUC of cos(g, g₊), for the rarest class against all others, as `cosines` has it."""

    word: ClassVar[str] = "cosine"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients", "labels"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        return folded(cosines(self.name, traffic, seed))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLeak(Attack):
    """The larger of the leak AUCs by size and by direction.

    Each is held to 97.5%, so that the larger of the two lies in its interval, and `leaks` errs, as one alone would at
    95%. Where no step has the two rows of the rarest class that the direction needs, it is the size alone.
    """

    word: ClassVar[str] = "label_leak"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients", "labels"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        found = [folded(norms(self.name, traffic, level=0.975))]
        try:
            found.append(folded(cosines(self.name, traffic, seed, level=0.975)))
        except Unmatched:
            return found[0]
        low, high = max(score.low for score in found), max(score.high for score in found)
        return replace(max(found, key=lambda score: score.value), low=low, high=high)


class Unmatched(DataError):
    """No step has two rows of the class, one to know and one to find."""


def label_leak(traffic: Traffic, seed: int = 0) -> Score:
    """How well the gradients of this traffic tell its labels. Raises `DataError` for traffic without either."""
    return LabelLeak().run(traffic, Knowledge(), seed)


def cosines(attack: str, traffic: Traffic, seed: int, level: float = 0.95) -> Score:
    """The AUC within a step, averaged over the steps that have both classes; unfolded.

    In each step the attacker knows one row of the class, drawn by `seed`, by some way beside the protocol; that row is
    not scored. Rows are ranked by the cosine itself, of which the paper's sign is one threshold.
    """
    gradients, labels = needed(attack, traffic, "gradients", "labels")
    classes = class_numbers(attack, labels)
    positive = classes == rarest(attack, classes)
    known = _one_of_each(positive, traffic.steps.cpu(), seed)
    rest = torch.cat([part for part, _ in known])
    flat = gradients.detach().cpu().flatten(1).double()
    cosine = torch.cat([F.cosine_similarity(flat[part], flat[one][None]) for part, one in known])
    rows = None if traffic.rows is None else traffic.rows.cpu()[rest]
    return auc(attack, cosine, positive[rest], steps=traffic.steps.cpu()[rest], rows=rows, level=level)


def _one_of_each(positive: Tensor, steps: Tensor, seed: int) -> list[tuple[Tensor, int]]:
    """For each step with two rows of the class and one of the others: all its rows but the known one, and that."""
    draws, found = torch.Generator().manual_seed(seed), []
    for part in by_step(steps):
        hits = part[positive[part]]
        if 2 <= len(hits) < len(part):
            one = int(hits[torch.randint(len(hits), (), generator=draws)])
            found.append((part[part != one], one))
    if not found:
        raise Unmatched("cosine found no step with two rows of the rarest class and one of another: record more steps")
    return found
