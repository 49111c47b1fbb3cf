"""What a curious peer saw on an edge, what it meant, and what an attack made of it."""

from dataclasses import dataclass, fields
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from cutlayer.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """N rows as they crossed an edge in training, in the order in which they did; None for what did not.

    The peer sees `activations` `[N, ...]`, `gradients` `[N, ...]` (of the loss summed over a mini-batch) and `steps`
    int64 `[N]`, the number of the step in which a row crossed. What scores an attack, and what it must not look at
    unless it says so, is `rows` int64 `[N]` (which of the owner's rows it is), `inputs` `[N, ...]` and `labels` `[N]`.
    """

    steps: Tensor
    activations: Tensor | None = None
    gradients: Tensor | None = None
    rows: Tensor | None = None
    inputs: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None and len(tensor) != len(self.steps):
                raise DataError(f"a recording has {len(tensor)} {field.name} for {len(self.steps)} rows: record anew")

    def __len__(self) -> int:
        return len(self.steps)

    def chosen(self, which: Tensor) -> "Traffic":
        """Some of the rows, by a mask or by their places."""
        return Traffic(**{name: tensor[which] for name, tensor in self._tensors().items()})

    def save(self, path: Path) -> None:
        """To a file of tensors alone."""
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Traffic":
        """Raises `DataError` for what is no recording."""
        try:
            return cls(**load_file(path))
        except Exception as error:
            raise DataError(f"{path} is no recording of cutlayer's: record the run anew") from error

    def _tensors(self) -> dict[str, Tensor]:
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in told.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well an attack did: `value`, in `unit`, with its 95% interval, beside what guessing gives.

    `better`: whether a larger or a smaller value means that more has leaked. `shown`: originals and what the attack
    made of them, both `[M, ...]`, where that can be looked at.
    """

    attack: str
    unit: str
    value: float
    low: float
    high: float
    chance: float
    better: str = "larger"
    rows: int = 0
    shown: tuple[Tensor, Tensor] | None = None

    @property
    def leaks(self) -> bool:
        """Whether it did better than guessing, by the interval."""
        return self.low > self.chance if self.better == "larger" else self.high < self.chance
