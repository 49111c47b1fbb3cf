"""Gradients that a clone of the top would give for each class, beside those that came."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from cutlayer.errors import DataError

AT_ONCE = 256
RESTARTS = 8
ROUNDS = 50


def fresh(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A segment with weights by the seed, as in evaluation; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().float().eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class Matcher:
    """A clone of the top, activations `[N, ...]` that it is given and gradients `[N, D]` that came for them.

    Gradients are of the loss summed over a mini-batch, so each is of its own row's loss: softmax and cross-entropy over
    `classes`, or one logit's binary cross-entropy. They are of the activations, or `of_weights`: the top's first.
    """

    top: nn.Module
    activations: Tensor
    gradients: Tensor
    size: Tensor
    of_weights: bool
    classes: int

    @classmethod
    def made(
        cls, top: nn.Module, activations: Tensor, gradients: Tensor, *, of_weights: bool, classes: int
    ) -> "Matcher":
        """Raises `DataError` where the top does not fit what crossed."""
        with torch.no_grad():
            scores = top(activations[:2].float())
        width = scores.shape[-1]
        told = max(width, 2)
        if scores.dim() != 2 or classes not in (0, told):
            raise DataError(
                f"the top given makes {list(scores.shape[1:])} scores a row, for {classes or 'some'} classes"
            )
        wanted = next(top.parameters()).shape if of_weights else activations.shape[1:]
        if gradients.shape[1:] != wanted:
            raise DataError(f"gradients of shape {list(gradients.shape[1:])} came where {list(wanted)} were to come")
        flat = gradients.float().flatten(1)
        size = flat.square().sum(1).mean().clamp_min(torch.finfo(torch.float32).tiny)
        return cls(
            top=top, activations=activations.float(), gradients=flat, size=size, of_weights=of_weights, classes=told
        )

    def nearest(self, at: Tensor) -> Tensor:
        """The class whose gradient is nearest to the one that came, for rows at these places `[B]`."""
        found = []
        for part in torch.split(at, AT_ONCE):
            every = torch.arange(self.classes).repeat_interleave(len(part))
            tried = self.distances(part.repeat(self.classes), every)
            found.append(tried.view(self.classes, -1).argmin(0))
        return torch.cat(found)

    def distances(self, at: Tensor, labels: Tensor, *, learn: bool = False) -> Tensor:
        """Squared distances of the clone's gradients for these labels, over the mean squared size of what came `[B]`.

        `learn`: differentiable in the clone's weights.
        """
        made = self._at_weights(at, labels) if self.of_weights else self._at_cut(at, labels, learn)
        distances = (made.flatten(1) - self.gradients[at]).square().sum(1) / self.size
        return distances if learn else distances.detach()

    def loss(self, at: Tensor, labels: Tensor) -> Tensor:
        """Of the clone, summed over rows."""
        return _loss(self.top(self.activations[at]), labels)

    def _at_cut(self, at: Tensor, labels: Tensor, learn: bool) -> Tensor:
        z = self.activations[at].requires_grad_()
        (made,) = torch.autograd.grad(_loss(self.top(z), labels), z, create_graph=learn)
        return made

    def _at_weights(self, at: Tensor, labels: Tensor) -> Tensor:
        parameters = dict(self.top.named_parameters())
        first = next(iter(parameters))

        def of_row(weight: Tensor, z: Tensor, label: Tensor) -> Tensor:
            return _loss(functional_call(self.top, parameters | {first: weight}, (z[None],)), label[None])

        made: Tensor = vmap(grad(of_row), (None, 0, 0))(parameters[first], self.activations[at], labels)
        return made


def groups_by_direction(gradients: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """So many groups of rows `[N]` whose gradients `[N, D]` point the same way: the best of some k-means.

    Those of one class do (Liu et al., arXiv 2203.05222, section IV): behind a linear top they are Σ p W − W_y.
    """
    units = F.normalize(gradients, eps=1e-20)
    tried = [_grouped(units, count, generator) for _ in range(RESTARTS)]
    return min(tried, key=lambda found: found[0])[1]


def _grouped(units: Tensor, count: int, generator: torch.Generator) -> tuple[float, Tensor]:
    centres = units[torch.randint(len(units), (1,), generator=generator)]
    for _ in range(count - 1):
        far = torch.cdist(units, centres).amin(1).square() + 1e-12
        centres = torch.cat([centres, units[torch.multinomial(far, 1, generator=generator)]])
    groups = torch.cdist(units, centres).argmin(1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add(0, groups, units)
        counts = groups.bincount(minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        before, groups = groups, torch.cdist(units, centres).argmin(1)
        if torch.equal(before, groups):
            break
    return float((units - centres[groups]).square().sum()), groups


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    if scores.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype), reduction="sum")
    return F.cross_entropy(scores, labels, reduction="sum")
