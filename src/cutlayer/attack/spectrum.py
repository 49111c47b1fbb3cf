"""Labels from the direction in which a mini-batch spreads most, of its activations or of its gradients.

Sun et al. 2022, "Label leakage and protection from forward embedding in vertical federated learning" (arXiv
2203.01451): rows lie on two sides along the top singular vector of the centred mini-batch, and those are two classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.scoring import auc, by_step, class_numbers, folded, needed, rarest
from cutlayer.attack.traffic import Score, Traffic


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrum(Attack):
    """The leak AUC of where activations lie along that direction, for the rarest class against all others."""

    word: ClassVar[str] = "spectrum"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        return _spectral(self.name, traffic, "activations")


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientSpectrum(Attack):
    """The leak AUC of where gradients lie along that direction, for the rarest class against all others."""

    word: ClassVar[str] = "gradient_spectrum"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        return _spectral(self.name, traffic, "gradients")


def _spectral(attack: str, traffic: Traffic, name: str) -> Score:
    tensors, labels = needed(attack, traffic, name, "labels")
    classes = class_numbers(attack, labels)
    positive = classes == rarest(attack, classes)
    places = along(tensors, traffic.steps.cpu())
    return folded(auc(attack, places, positive, steps=traffic.steps, rows=traffic.rows))


def along(tensors: Tensor, steps: Tensor) -> Tensor:
    """Where each row of `[N, ...]` lies along its own step's top singular vector, of the rows less their mean.

    A singular vector has no sign of its own. Each is turned to the side of the step before it, so that the attacker
    must find out once, not at each step, which side is which class.
    """
    places, before = torch.zeros(len(tensors), dtype=torch.float64), None
    for part in by_step(steps):
        rows = tensors[part].detach().cpu().flatten(1).double()
        rows = rows - rows.mean(0)
        vector = _top(rows)
        if before is not None and float(vector @ before) < 0:
            vector = -vector
        places[part], before = rows @ vector, vector
    return places


def _top(rows: Tensor) -> Tensor:
    """The top right singular vector, from the smaller of the two Gram matrices."""
    if len(rows) < rows.shape[1]:
        vector = rows.T @ torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -1]
    else:
        vector = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    unit: Tensor = vector / vector.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return unit
