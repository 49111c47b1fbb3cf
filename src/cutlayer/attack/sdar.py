"""SDAR: an honest server's simulator of the client, and its decoder, held to the client's features by adversaries.

Zhu, Luo, Wu, Jiang, Xiao and Ooi 2023, "Passive Inference Attacks on Split Learning via Adversarial Regularization"
(arXiv 2310.10483, section IV, vanilla split learning). A simulator f̃ learns the task on auxiliary rows through the
server's own top, and to give features that a discriminator takes for the client's; a decoder learns to invert f̃, and
to make rows of the client's features that a second one takes for auxiliary rows. All but f̃ are told the labels. The
client gets honest gradients and cannot tell. What the paper does where no labels come (U-shaped) is not here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge, Need
from cutlayer.attack.examples import Examples
from cutlayer.attack.hijack import named, option_faults
from cutlayer.attack.learner import Learner, Shadow, own_randomness, simulator, task_loss
from cutlayer.attack.pilots import Labelled, Shape, critic, decoder, encoder, started
from cutlayer.attack.rebuilt import Measure, measure_fault
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    examples: Examples
    generator: torch.Generator
    seed: int
    shadow: Shadow
    client: Learner
    client_critic: Learner
    decoder: Learner
    decoder_critic: Learner


@dataclass(kw_only=True)
class Sdar:
    """`client_weight` is the paper's λ₁, `decoder_weight` its λ₂; rates and both as the authors have them for ResNets
    on CIFAR-10. `repeats`: mini-batches it learns from a step; `width`: of its networks, but of the simulator only
    where the client's architecture is not known.
    """

    width: int = 32
    blocks: int = 2
    lr: float = 1e-3
    decoder_lr: float = 5e-4
    client_critic_lr: float = 2e-5
    decoder_critic_lr: float = 5e-9
    client_weight: float = 0.02
    decoder_weight: float = 1e-5
    repeats: int = 1
    measure: Measure = ""
    word: ClassVar[str] = "sdar"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "labels", "auxiliary", "top"})

    def __post_init__(self) -> None:
        self._begun: _Begun | None = None
        rates = ("lr", "decoder_lr", "client_critic_lr", "decoder_critic_lr")
        faults = option_faults(
            self, above_zero=("width", "repeats", *rates), at_least_zero=("blocks", "client_weight", "decoder_weight")
        )
        if faults := faults + measure_fault(self.word, self.measure):
            raise PlanError(faults)

    @property
    def name(self) -> str:
        return named(self)

    def begin(self, knowledge: Knowledge, example: Tensor, seed: int) -> None:
        device = example.device
        examples = Examples.known(self.word, knowledge, device)
        examples.labelled(self.word)
        if not knowledge.classes:
            raise DataError(f"{self.word} is told labels that are class numbers, and these are none: use pcat")
        generator = torch.Generator().manual_seed(seed)
        row, cut = tuple(examples.rows.shape[1:]), tuple(example.shape[1:])
        nonnegative = bool((example >= 0).all())
        with own_randomness(generator, device):
            client = simulator(
                self.word, knowledge, cut, lambda: encoder(row, cut, width=self.width, nonnegative=nonnegative)
            )
            inverse = started(Labelled(cut, knowledge.classes, lambda shape: decoder(shape, row, width=self.width)))
            judges = [started(Labelled(shape, knowledge.classes, self._critic)) for shape in (cut, row)]
        self._begun = _Begun(
            examples=examples, generator=generator, seed=seed, shadow=Shadow(),
            client=Learner(client, self.lr, device),
            client_critic=Learner(judges[0], self.client_critic_lr, device),
            decoder=Learner(inverse, self.decoder_lr, device),
            decoder_critic=Learner(judges[1], self.decoder_critic_lr, device),
        )  # fmt: skip

    def watch(self, activations: Tensor, labels: Tensor | None, top: nn.Module) -> None:
        begun = self._now()
        if labels is None:
            raise DataError(f"{self.word} needs the labels of what crosses, and none come: use fsha or pcat")
        z, y = activations.detach().float(), labels.flatten().long()
        own = begun.examples
        with own_randomness(begun.generator, z.device):
            shadow = begun.shadow.of(top)
            for _ in range(self.repeats):
                places = own.drawn(len(z), begun.generator)
                self._simulate(begun, (z, y), places, shadow)
                self._decode(begun, (z, y), places)

    def _simulate(self, begun: _Begun, seen: tuple[Tensor, Tensor], places: Tensor, top: nn.Module) -> None:
        """A step of f̃ and of who tells its features from the client's."""
        own, judge = begun.examples, begun.client_critic.network
        z, y = seen
        y_own = own.labelled(self.word)[places]
        z_own = begun.client.network(own.simulated(places))
        d_own, d_client = judge(z_own, y_own), judge(z, y)
        loss = task_loss(top(z_own), y_own, own.knowledge.classes) + self.client_weight * _taken(d_own, for_real=True)
        for_client = begun.client.gradients(loss, keep=True)
        told_apart = _taken(d_client, for_real=True) + _taken(d_own, for_real=False)
        begun.client_critic.step(begun.client_critic.gradients(told_apart))
        begun.client.step(for_client)

    def _decode(self, begun: _Begun, seen: tuple[Tensor, Tensor], places: Tensor) -> None:
        """A step of the decoder and of who tells what it makes from rows."""
        own, judge, inverse = begun.examples, begun.decoder_critic.network, begun.decoder.network
        z, y = seen
        x_own, y_own = own.rows[places], own.labelled(self.word)[places]
        with torch.no_grad():
            z_own = begun.client.network(own.simulated(places))
        made = inverse(z, y)
        d_made = judge(made, y)
        loss = F.mse_loss(inverse(z_own, y_own), x_own) + self.decoder_weight * _taken(d_made, for_real=True)
        for_decoder = begun.decoder.gradients(loss, keep=True)
        told_apart = _taken(judge(x_own, y_own), for_real=True) + _taken(d_made, for_real=False)
        begun.decoder_critic.step(begun.decoder_critic.gradients(told_apart))
        begun.decoder.step(for_decoder)

    def score(self, traffic: Traffic) -> Score:
        """Chance here is the mean of each class: the labels that the decoder is told come with the activations."""
        begun = self._now()
        return begun.examples.score(
            self.name, traffic, begun.decoder.network, how=(self.measure, begun.seed), told=True
        )

    def _critic(self, shape: Shape) -> nn.Module:
        return critic(shape, width=self.width, blocks=self.blocks)

    def _now(self) -> _Begun:
        if self._begun is None:
            raise DataError(f"{self.word} has seen no activations yet: begin it first")
        return self._begun


def _taken(judged: Tensor, *, for_real: bool) -> Tensor:
    """The loss of who should take what it judged `[B]` for real, or for made."""
    return F.binary_cross_entropy_with_logits(judged, torch.full_like(judged, float(for_real)))
