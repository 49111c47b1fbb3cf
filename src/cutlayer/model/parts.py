"""The parts of a cut model: `Part`, made by cutting, and `Parts`, given by a person."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cutlayer.errors import CutError

Outputs = Tensor | tuple[Tensor, ...]


class Part(nn.Module):
    """One slice of a cut model, called as `part(*tensors)`; its state keeps the uncut model's names."""

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.training = training
        self._runs: Mapping[bool, Callable[..., Any]] = {}

    def follow(self, runs: Mapping[bool, Callable[..., Any]]) -> None:
        """Takes the part's forward in training mode (True) and in evaluation mode (False)."""
        self._runs = runs

    def forward(self, *tensors: Tensor) -> Outputs:
        out: Outputs = self._runs[self.training](self, *tensors)
        as_tuple(out)
        return out


class Parts(nn.Module):
    """A model given as parts, for one that torch.fx cannot trace: `Parts(bottom=Bottom(), top=Top())`.

    Each part takes exactly what the one before returns, a tensor or a tuple of tensors. Run in turn they are the
    uncut model, and its state's names begin with the part's: "bottom.…".

    Raises:
        CutError: no parts, a name that no module can bear, or one given twice.
    """

    def __init__(self, parts: Sequence[tuple[str, nn.Module]] = (), /, **named: nn.Module) -> None:
        super().__init__()
        given = [*parts, *named.items()]
        if not given:
            raise CutError(f"Parts needs at least one part: {type(self).__name__}(bottom=Bottom(), top=Top())")
        for name, part in given:
            if name in self._modules:
                raise CutError(f"two parts cannot both be called {name!r}: choose another name")
            try:
                self.add_module(name, part)
            except (KeyError, TypeError) as error:
                raise CutError(f"a part cannot be called {name!r} ({error.args[0]}): choose another name") from error

    def forward(self, *tensors: Tensor) -> Outputs:
        out: Outputs = tensors
        for part in self.children():
            out = part(*as_tuple(out))
        return out


def as_tuple(out: Outputs) -> tuple[Tensor, ...]:
    """A part's output as what the next part is called with.

    Raises:
        CutError: something else than a tensor or a tuple of tensors.
    """
    tensors = out if isinstance(out, tuple) else (out,)
    for i, value in enumerate(tensors):
        if not isinstance(value, Tensor):
            raise CutError(
                f"output {i} of a part is a {type(value).__name__}, and only tensors cross: unpack it in the model's "
                f"forward, right after the layer that returns it"
            )
    return tensors


def check_states(parts: Mapping[str, nn.Module]) -> None:
    """No tensor of state in two parts, and parameters in each.

    Raises:
        CutError: tied weights or a shared layer across a cut, a part without parameters.
    """
    owner: dict[int, tuple[str, str]] = {}
    for part, module in parts.items():
        for path, tensor in state_tensors(module):
            before, other = owner.setdefault(id(tensor), (part, path))
            if before != part:
                raise CutError(tied(other, path, before, part))
        if not any(True for _ in module.parameters()):
            raise CutError(f"part {part!r} would have no parameters: move the cut so that both sides have some")


def state_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers by path, a shared one under each of its paths."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def tied(first: str, second: str, below: str, above: str) -> str:
    """Why a tensor cannot lie on both sides of a cut."""
    if first == second:
        return f"{first!r} is used in parts {below!r} and {above!r}, which lie apart: cut where one side uses it alone"
    return (
        f"{first!r} in part {below!r} and {second!r} in part {above!r} are one tensor (tied weights), which cannot "
        f"lie at two parties: untie them, or cut so that both lie on one side"
    )
