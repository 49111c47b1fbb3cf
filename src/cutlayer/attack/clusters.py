"""Labels from clusters: rows of one class lie together, among activations and still more among gradients.

Liu and Lyu 2022, "Clustering label inference attack against practical split learning" (arXiv 2203.05222).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.completion import principal
from cutlayer.attack.scoring import accuracy, class_numbers, latest, needed, rarest
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError

STARTS = 10
"""How often k-means begins anew; the tightest clusters are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters(Attack):
    """The accuracy of k-means on activations, each row as it crossed last."""

    word: ClassVar[str] = "clusters"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        return _clustered(self.name, traffic, "activations", seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientClusters(Attack):
    """The accuracy of k-means on the directions of gradients, each row as it crossed last."""

    word: ClassVar[str] = "gradient_clusters"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        return _clustered(self.name, traffic, "gradients", seed)


def _clustered(attack: str, traffic: Traffic, name: str, seed: int) -> Score:
    needed(attack, traffic, name, "labels")
    tensors, labels = needed(attack, latest(traffic), name, "labels")
    classes = class_numbers(attack, labels)
    rarest(attack, classes)
    names, classes = torch.unique(classes, return_inverse=True)
    flat = tensors.detach().cpu().flatten(1)
    if name == "gradients":
        flat = torch.nn.functional.normalize(flat.double(), dim=1)
    found = _k_means(attack, principal(flat, seed), len(names), seed)
    return accuracy(attack, named_elsewhere(found, classes, seed), classes)


def _k_means(attack: str, rows: Tensor, k: int, seed: int) -> Tensor:
    """Which of k clusters each row is in: k-means++ (Arthur and Vassilvitskii 2007), the best of `STARTS`."""
    data, best = rows.double().numpy(), (np.inf, None)
    if len(np.unique(data, axis=0)) < k:
        raise DataError(f"{attack} found fewer than {k} different rows of {len(data)}: record more")
    for start in np.random.default_rng(seed).spawn(STARTS):
        try:
            centres, which = kmeans2(data, k, iter=30, minit="++", missing="raise", rng=start)
        except ClusterError:
            continue
        spread = float(np.square(data - centres[which]).sum())
        best = min(best, (spread, which), key=lambda pair: pair[0])
    if best[1] is None:
        raise DataError(f"{attack} found fewer than {k} clusters in {len(data)} rows: record more")
    return torch.from_numpy(best[1]).to(torch.int64)


def named_elsewhere(clusters: Tensor, classes: Tensor, seed: int) -> Tensor:
    """A class for each row's cluster, by the Hungarian method on the half of the rows that this row is not in.

    Named by all rows, k clusters of nothing would seem better than the best constant, since the best of k! names wins.
    """
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    halves = (order[::2], order[1::2])
    k, guesses = int(classes.max()) + 1, torch.empty_like(classes)
    for judged, other in (halves, halves[::-1]):
        met = torch.zeros(k, k, dtype=torch.int64)
        met.index_put_((clusters[other], classes[other]), torch.ones(len(other), dtype=torch.int64), accumulate=True)
        names = torch.from_numpy(linear_sum_assignment(met.numpy(), maximize=True)[1])
        guesses[judged] = names[clusters[judged]]
    return guesses
