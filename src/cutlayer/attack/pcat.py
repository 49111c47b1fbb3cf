"""The pseudo-client attack: an honest server teaches a client of its own against its top, and inverts that client.

Gao and Zhang 2023, "PCAT: Functionality and Data Stealing from Split Learning by Pseudo-Client Attack" (USENIX
Security). As training goes on, the top that the client shapes also shapes the pseudo-client, which learns the task on
auxiliary rows through that top as it is at each step. Their features grow alike, so a decoder of the pseudo-client's
works on the client's too. The client gets honest gradients and cannot tell.
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
from cutlayer.attack.pilots import decoder, encoder, started
from cutlayer.attack.rebuilt import Measure, measure_fault
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    examples: Examples
    generator: torch.Generator
    seed: int
    client: Learner
    inverse: Learner
    shadow: Shadow


@dataclass(kw_only=True)
class Pcat:
    """`width`: of its decoder, and of its pseudo-client where the client's architecture is not known.

    `repeats`: mini-batches it learns from a step. `aligned`: where labels are class numbers, they have those of the
    client's mini-batch, so that both clients are fed alike.
    """

    width: int = 32
    lr: float = 1e-3
    decoder_lr: float = 1e-3
    repeats: int = 1
    aligned: bool = True
    measure: Measure = ""
    word: ClassVar[str] = "pcat"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "labels", "auxiliary", "top"})

    def __post_init__(self) -> None:
        self._begun: _Begun | None = None
        faults = option_faults(self, above_zero=("width", "lr", "decoder_lr", "repeats"))
        if faults := faults + measure_fault(self.word, self.measure):
            raise PlanError(faults)

    @property
    def name(self) -> str:
        return named(self)

    def begin(self, knowledge: Knowledge, example: Tensor, seed: int) -> None:
        device = example.device
        examples = Examples.known(self.word, knowledge, device)
        examples.labelled(self.word)
        generator = torch.Generator().manual_seed(seed)
        row, cut = tuple(examples.rows.shape[1:]), tuple(example.shape[1:])
        nonnegative = bool((example >= 0).all())
        with own_randomness(generator, device):
            client = simulator(
                self.word, knowledge, cut, lambda: encoder(row, cut, width=self.width, nonnegative=nonnegative)
            )
            inverse = started(decoder(cut, row, width=self.width))
        self._begun = _Begun(
            examples=examples, generator=generator, seed=seed, shadow=Shadow(),
            client=Learner(client, self.lr, device), inverse=Learner(inverse, self.decoder_lr, device),
        )  # fmt: skip

    def watch(self, activations: Tensor, labels: Tensor | None, top: nn.Module) -> None:
        begun = self._now()
        if self.aligned and labels is None and begun.examples.knowledge.classes:
            raise DataError(f"{self.word} needs the labels of what crosses: choose aligned = false")
        with own_randomness(begun.generator, activations.device):
            shadow = begun.shadow.of(top)
            for _ in range(self.repeats):
                self._learn(begun, len(activations), labels, shadow)

    def _learn(self, begun: _Begun, count: int, labels: Tensor | None, top: nn.Module) -> None:
        own = begun.examples
        if self.aligned and labels is not None and own.knowledge.classes:
            places = own.alike(labels.flatten(), begun.generator)
        else:
            places = own.drawn(count, begun.generator)
        z_own = begun.client.network(own.simulated(places))
        task = task_loss(top(z_own), own.labelled(self.word)[places], own.knowledge.classes)
        rebuilding = F.mse_loss(begun.inverse.network(z_own.detach()), own.rows[places])
        begun.client.step(begun.client.gradients(task))
        begun.inverse.step(begun.inverse.gradients(rebuilding))

    def score(self, traffic: Traffic) -> Score:
        begun = self._now()
        return begun.examples.score(
            self.name, traffic, lambda z, _: begun.inverse.network(z), how=(self.measure, begun.seed)
        )

    def _now(self) -> _Begun:
        if self._begun is None:
            raise DataError(f"{self.word} has seen no activations yet: begin it first")
        return self._begun
