"""Feature-space hijacking: a malicious server draws the client's segment into a feature space that it can invert.

Pasquini, Ateniese and Bernaschi 2021, "Unleashing the Tiger: Inference Attacks on Split Learning" (arXiv 2012.02670,
section 3). The server trains a pilot f̃ and its inverse on rows of its own; a discriminator D learns to tell f̃'s
features from the client's, and the gradient of D is all that the client is ever told. Once D cannot tell them apart,
the inverse works on the client's activations too. The task is not learned at all. NoPeek does not stop it (section 5),
nor does an optimizer with differential privacy (Gawron and Stubbings 2022, arXiv 2201.04018).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge, Need
from cutlayer.attack.examples import Examples
from cutlayer.attack.hijack import named, option_faults
from cutlayer.attack.learner import Learner, own_randomness, within
from cutlayer.attack.pilots import critic, decoder, encoder, started
from cutlayer.attack.rebuilt import Measure, measure_fault
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    examples: Examples
    generator: torch.Generator
    seed: int
    pilot: nn.Module
    inverse: nn.Module
    both: Learner
    critic: Learner


@dataclass(kw_only=True)
class Fsha:
    """`width`: of the narrowest convolution of the attacker's networks, whose widest have four times that; `blocks`:
    of D, where it has convolutions.

    `lr` of f̃ and its inverse, `critic_lr` of D, which takes `critic_steps` a step, and the `penalty`'s weight. The
    authors have width 64 with 6 blocks, rates of 1e-5 and 1e-4, and 500, for ten thousand steps on a GPU; these are for
    narrower networks and shorter runs, and the penalty and D's Adam are those of Gulrajani et al. (their algorithm 1).
    """

    width: int = 32
    blocks: int = 2
    lr: float = 1e-3
    critic_lr: float = 1e-3
    critic_steps: int = 1
    penalty: float = 10.0
    measure: Measure = ""
    word: ClassVar[str] = "fsha"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "auxiliary"})

    def __post_init__(self) -> None:
        self._begun: _Begun | None = None
        faults = option_faults(
            self, above_zero=("width", "lr", "critic_lr", "critic_steps"), at_least_zero=("penalty", "blocks")
        )
        if faults := faults + measure_fault(self.word, self.measure):
            raise PlanError(faults)

    @property
    def name(self) -> str:
        return named(self)

    def begin(self, knowledge: Knowledge, example: Tensor, seed: int) -> None:
        examples = Examples.known(self.word, knowledge, example.device)
        generator = torch.Generator().manual_seed(seed)
        row, cut = tuple(examples.rows.shape[1:]), tuple(example.shape[1:])
        with own_randomness(generator, example.device):
            pilot = started(encoder(row, cut, width=self.width, nonnegative=bool((example >= 0).all())))
            inverse = started(decoder(cut, row, width=self.width))
            judge = started(critic(cut, width=self.width, blocks=self.blocks))
        self._begun = _Begun(
            examples=examples, generator=generator, seed=seed, pilot=pilot, inverse=inverse,
            both=Learner(nn.Sequential(pilot, inverse), self.lr, example.device),
            critic=Learner(judge, self.critic_lr, example.device, betas=(0.5, 0.9)),
        )  # fmt: skip

    def answer(self, activations: Tensor, labels: Tensor | None) -> Tensor:
        begun = self._now()
        z = activations.detach().float().requires_grad_()
        places = begun.examples.drawn(len(z), begun.generator)
        z_own = begun.pilot(begun.examples.encoded(places))
        # The client lowers what D raises: section 3.2, with Wasserstein's loss in the place of equation 3, as the
        # authors' code has it. Its own loss is a sum over the mini-batch.
        (told,) = torch.autograd.grad(begun.critic.network(z).sum(), z)
        for _ in range(self.critic_steps):
            self._judge(begun, z.detach(), z_own.detach())
        begun.both.step(begun.both.gradients(F.mse_loss(begun.inverse(z_own), begun.examples.rows[places])))
        return told.to(activations.dtype)

    def _judge(self, begun: _Begun, z: Tensor, z_own: Tensor) -> None:
        """A step of D, which is to be low on f̃'s features and high on the client's."""
        judged = begun.critic.network(torch.cat((z_own, z)))
        loss = judged[: len(z)].mean() - judged[len(z) :].mean()
        if self.penalty:
            loss = loss + self.penalty * _steepness(begun.critic, z, z_own, begun.generator)
        begun.critic.step(begun.critic.gradients(loss))

    def score(self, traffic: Traffic) -> Score:
        begun = self._now()
        return begun.examples.score(self.name, traffic, lambda z, _: begun.inverse(z), how=(self.measure, begun.seed))

    def tensors(self) -> dict[str, Tensor]:
        """All that it has learned, to go on from."""
        begun = self._now()
        parts = {"both": begun.both, "critic": begun.critic}
        told = {f"{part}.{name}": t for part, learner in parts.items() for name, t in learner.tensors().items()}
        return told | {"generator": begun.generator.get_state()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from there, after a `begin` like the one before it."""
        begun = self._now()
        begun.both.restore(within(tensors, "both"))
        begun.critic.restore(within(tensors, "critic"))
        begun.generator.set_state(tensors["generator"])

    def _now(self) -> _Begun:
        if self._begun is None:
            raise DataError(f"{self.word} has seen no activations yet: begin it first")
        return self._begun


def _steepness(judge: Learner, z: Tensor, z_own: Tensor, generator: torch.Generator) -> Tensor:
    """How far D's slope between the two kinds of features is from 1 (Gulrajani et al. 2017, arXiv 1704.00028, eq. 3).

    Of maps `[B, C, H, W]` the slope is that of each channel, as in the authors' code; of all else that of the row.
    """
    share = torch.rand(len(z), *[1] * (z.dim() - 1), generator=generator).to(z.device)
    between = (share * z + (1 - share) * z_own).requires_grad_()
    (slope,) = torch.autograd.grad(judge.network(between).sum(), between, create_graph=True)
    squares = slope.square().flatten(2 if z.dim() == 4 else 1).sum(-1)
    # A root has no slope at 0, where ReLUs can put it.
    return ((squares + 1e-12).sqrt() - 1).square().mean()
