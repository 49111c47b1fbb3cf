"""Labels from activations and a few labelled rows: the attacker completes its bottom with a top of its own.

Fu et al. 2022, "Label inference attacks against vertical federated learning" (USENIX Security), section 4.1. The paper
trains with MixMatch or MixText, which are made for images or for texts; here it is plain self-training (Lee 2013), for
any rows: the classes that the head is sure of are taken as labels, and it is trained anew.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.scoring import accuracy, class_numbers, latest, needed
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion(Attack):
    """The accuracy on all rows but the known ones, each as it crossed last.

    `labels`: how many rows the attacker knows the class of, as many of each class as can be. `rounds`: how often rows
    whose class has a probability of at least `sure` become labelled ones; 0: the labelled rows alone.
    """

    labels: int = 40
    rounds: int = 3
    sure: float = 0.95
    word: ClassVar[str] = "completion"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "labels"})

    def __post_init__(self) -> None:
        found = [] if self.labels >= 1 else [f"completion: labels = {self.labels}: at least 1"]
        found += [] if self.rounds >= 0 else [f"completion: rounds = {self.rounds}: at least 0"]
        found += [] if 0 < self.sure <= 1 else [f"completion: sure = {self.sure}: more than 0, at most 1"]
        if found:
            raise PlanError(found)

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        needed(self.name, traffic, "activations", "labels")
        activations, labels = needed(self.name, latest(traffic), "activations", "labels")
        names, classes = torch.unique(class_numbers(self.name, labels), return_inverse=True)
        if len(classes) <= self.labels:
            raise DataError(f"{self.name} found {len(classes)} rows: record more than it has labels of")
        known = drawn_evenly(classes, self.labels, seed)
        features = principal(activations, seed)
        guesses = _self_trained(self, features, torch.where(known, classes, -1), len(names), seed)
        return accuracy(self.name, guesses[~known], classes[~known])


def _self_trained(settings: Completion, features: Tensor, told: Tensor, classes: int, seed: int) -> Tensor:
    """The class of each row; `told` has those of the known rows, and −1 for the others."""
    targets = guess = told
    for turn in range(settings.rounds + 1):
        labelled = targets >= 0
        head = fitted(features[labelled], targets[labelled], classes, seed + turn)
        with torch.no_grad():
            sure, guess = head(features).softmax(1).max(1)
        targets = torch.where(told >= 0, told, torch.where(sure >= settings.sure, guess, -1))
    return guess


def drawn_evenly(classes: Tensor, count: int, seed: int) -> Tensor:
    """A mask of `count` rows of `[N]`, drawn so that as many are of each class as can be."""
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    turn = torch.empty(len(classes), dtype=torch.int64)
    for number in torch.unique(classes):
        members = order[classes[order] == number]
        turn[members] = torch.arange(len(members))
    chosen = order[turn[order].argsort(stable=True)[:count]]
    return torch.zeros(len(classes), dtype=torch.bool).index_fill(0, chosen, True)


def principal(tensors: Tensor, seed: int, most: int = 64) -> Tensor:
    """Rows `[N, ...]` as at most `most` principal components of them: float32 `[N, P]`, of mean square 1 altogether.

    By a random range finder with four power iterations (Halko et al. 2011, algorithm 4.4).
    """
    rows = tensors.detach().cpu().flatten(1).double()
    rows = rows - rows.mean(0)
    if rows.shape[1] > most:
        draws = torch.Generator().manual_seed(seed)
        base = torch.randn(rows.shape[1], most + 8, generator=draws, dtype=torch.float64)
        for _ in range(4):
            base = torch.linalg.qr(rows.T @ torch.linalg.qr(rows @ base).Q).Q
        small = rows @ base
        rows = small @ torch.linalg.eigh(small.T @ small).eigenvectors[:, -most:]
    return (rows / rows.square().mean().sqrt().clamp(min=1e-30)).float()


def fitted(features: Tensor, targets: Tensor, classes: int, seed: int, hidden: int = 64) -> nn.Module:
    """A head of one hidden layer, trained on rows `[N, P]` and their classes `[N]`; the global generator stays put."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(features.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes))
        weights = list(head.parameters())
        optimizer = torch.optim.LBFGS(weights, max_iter=60, history_size=10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            ridge = sum((weight.square().sum() for weight in weights), torch.zeros(()))
            total = F.cross_entropy(head(features), targets) + 1e-3 * ridge
            torch.autograd.backward(total)
            return total.detach()

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return head
