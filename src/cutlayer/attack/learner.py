"""Networks that an attacker teaches beside a run, without a trace in it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge
from cutlayer.errors import DataError

Gradients = Sequence[Tensor | None]


class Learner:
    """A network and the Adam that teaches it. Gradients of nothing else are touched."""

    def __init__(
        self, network: nn.Module, lr: float, device: torch.device, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.network = network.to(device)
        self.parameters = list(network.parameters())
        self.adam = torch.optim.Adam(self.parameters, lr=lr, betas=betas)

    def gradients(self, loss: Tensor, *, keep: bool = False) -> Gradients:
        """`keep`: the loss, or what it is made of, is differentiated again."""
        return torch.autograd.grad(loss, self.parameters, retain_graph=keep, allow_unused=True)

    def step(self, gradients: Gradients) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.adam.step()
        self.adam.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """All that it has learned, with Adam's moments."""
        moments = {
            f"adam.{place}.{name}": tensor
            for place, parameter in enumerate(self.parameters)
            for name, tensor in self.adam.state[parameter].items()
        }
        return {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()} | moments

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from where `tensors` was called."""
        self.network.load_state_dict(within(tensors, "network"))
        for place, parameter in enumerate(self.parameters):
            self.adam.state[parameter] = {name: t.clone() for name, t in within(tensors, f"adam.{place}").items()}


class Shadow:
    """A copy of the honest segment that follows its weights, in evaluation mode: what is done with it stays with it."""

    def __init__(self) -> None:
        self._of: nn.Module | None = None
        self._copy = nn.Module()

    def of(self, top: nn.Module) -> nn.Module:
        if self._of is top:
            self._copy.load_state_dict(top.state_dict())
        else:
            self._of, self._copy = top, copy.deepcopy(top).eval().requires_grad_(False)
        return self._copy


def task_loss(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean loss of predictions `[B, ...]`: cross-entropy of class numbers, else squared error."""
    if classes and predicted.dim() > 1 and predicted.shape[1] > 1:
        return F.cross_entropy(predicted, labels)
    predicted, labels = predicted.flatten(), labels.flatten().to(predicted.dtype)
    return F.binary_cross_entropy_with_logits(predicted, labels) if classes else F.mse_loss(predicted, labels)


def simulator(word: str, knowledge: Knowledge, cut: Sequence[int], otherwise: Callable[[], nn.Module]) -> nn.Module:
    """A client's segment with fresh weights that gives rows of shape `cut`; what `otherwise` makes, if none is known.

    Raises `DataError` where the one that is known gives others.
    """
    if knowledge.bottom is None or knowledge.auxiliary is None:
        return otherwise()
    made = knowledge.bottom()
    with torch.no_grad():
        given = made.eval()(knowledge.auxiliary[0][:2].cpu())
    shape = list(given.shape[1:]) if isinstance(given, Tensor) else "of several tensors"
    if shape != list(cut):
        raise DataError(f"{word}: the client's segment as known gives rows {shape}, not {list(cut)}: name another")
    return made.train()


@contextmanager
def own_randomness(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """What is drawn globally within comes of `generator`, and the global generators are left as they were."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def within(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those whose names begin with `part.`, without it."""
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
