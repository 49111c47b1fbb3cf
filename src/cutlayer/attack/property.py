"""A property of rows, other than what the model was trained for, from their activations.

A probe is trained on rows whose property the attacker knows: Song and Shmatikov 2020, "Overlearning reveals sensitive
attributes" (arXiv 1905.11742), section 3.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.completion import drawn_evenly, fitted, principal
from cutlayer.attack.scoring import auc, class_numbers, latest, needed
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class Property(Attack):
    """The AUC of a probe for a property, on rows that it was not trained on, each as it crossed last.

    The `labels` of the traffic and of the auxiliary rows stand for the property here, 0 or 1: replace them. Where the
    attacker knows the bottom and has auxiliary rows, the probe is trained on those rows' activations; else on a `share`
    of the traffic's rows.
    """

    share: float = 0.1
    word: ClassVar[str] = "property"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "labels"})

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise PlanError(f"property: share = {self.share}: more than 0, less than 1")

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        needed(self.name, traffic, "activations", "labels")
        activations, labels = needed(self.name, latest(traffic), "activations", "labels")
        flags, known = _flags(self.name, labels), torch.zeros(len(labels), dtype=torch.bool)
        inputs, properties = knowledge.auxiliary or (labels, None)
        if knowledge.known is not None and properties is not None:
            activations = torch.cat([_through(knowledge.known, inputs), activations.detach().cpu()])
            flags = torch.cat([_flags(self.name, properties), flags])
            known = torch.cat([torch.ones(len(inputs), dtype=torch.bool), known])
        else:
            known = drawn_evenly(flags, max(2, round(self.share * len(flags))), seed)
        features = principal(activations, seed)
        head = fitted(features[known], flags[known], 2, seed)
        with torch.no_grad():
            outputs = head(features[~known])
        return auc(self.name, outputs[:, 1] - outputs[:, 0], flags[~known] == 1)


def _flags(attack: str, labels: Tensor) -> Tensor:
    flags = class_numbers(attack, labels)
    if not set(flags.tolist()) <= {0, 1}:
        raise DataError(f"{attack} needs labels that are 0 or 1, whether a row has the property: replace the labels")
    return flags


def _through(bottom: nn.Module, inputs: Tensor) -> Tensor:
    """What a copy of the bottom makes of rows, in evaluation mode."""
    quiet = copy.deepcopy(bottom).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.cat([quiet(some) for some in torch.split(inputs, 256)]).cpu()
