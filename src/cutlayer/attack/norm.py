"""Labels from the size of gradients: a model errs most on rows of a rare class, whose gradients are larger.

Li et al. 2021, "Label leakage and protection in two-party split learning" (arXiv 2102.08504), section 3.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.scoring import auc, class_numbers, folded, needed, rarest
from cutlayer.attack.traffic import Score, Traffic


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm(Attack):
    """The leak AUC of ‖g‖ for the rarest class against all others, as `norms` has it."""

    word: ClassVar[str] = "norm"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        return folded(norms(self.name, traffic))


def norms(attack: str, traffic: Traffic, level: float = 0.95) -> Score:
    """The AUC within a step, averaged over the steps that have both classes; unfolded.

    As in the paper the attacker compares rows of one mini-batch, since sizes change as training goes on. The fold
    comes after the mean: which class is larger is one bit for the whole run, not one for each step. The paper's labels
    are 0 and 1; of more classes the rarest is told from the rest, since rare rows are what the method finds.
    """
    gradients, labels = needed(attack, traffic, "gradients", "labels")
    classes = class_numbers(attack, labels)
    positive = classes == rarest(attack, classes)
    return auc(attack, sizes(gradients), positive, steps=traffic.steps, rows=traffic.rows, level=level)


def sizes(gradients: Tensor) -> Tensor:
    """The Euclidean norm of each row of `[N, ...]`: float64 `[N]`."""
    lengths: Tensor = gradients.detach().cpu().flatten(1).double().norm(dim=1)
    return lengths
