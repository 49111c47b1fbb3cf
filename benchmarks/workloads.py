"""Fixed workloads on which every speed figure of the project is taken, and in which settings.

W1  small cut, client-heavy:  28x28 images, two conv blocks | 64x7x7 float32 (784 KiB a batch of 64) | two linear layers
W2  latency-bound:            64 columns, two towers of 32 | 64 float32 (64 KiB a batch of 256) | two linear layers
W2V the same network vertical:  32 columns and a tower at each of two parties, 32 KiB a party; top and labels at a third
W3  bandwidth-bound:          32x32 images, one conv | 64x32x32 float32 (16 MiB a batch of 64) | pool, conv, linear
W3V nearly the same vertical:   two of an image's four bands and a conv at each of two parties, 8 MiB a party

Seeds, shapes, batches and the optimizer (plain SGD) are part of the definition. A step of W2 takes less than a
millisecond uncut.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cutlayer.model.parts import Parts
from cutlayer.plan.course import TRIES
from cutlayer.plan.methods import methods_from
from cutlayer.plan.schedule import STEPS_TRIED
from cutlayer.plan.terms import Method

LR = 0.05
MODEL_SEED = 1
CUT = "0"
"""Every model is a Sequential of two: what the client runs, and what the server runs."""
WARM_UP = 5
TRIAL_STEPS = (1 + 2 * len(TRIES)) * STEPS_TRIED
"""So many steps try numbers of micro-batches, where the conductor is to decide on one."""
LOSSLESS = {"raw", "zstd", "lz4"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model of two parts, its rows and its loss. An epoch drops the last rows that fill no batch."""

    name: str
    parts: Callable[[], tuple[nn.Module, nn.Module]]
    rows: Callable[[], tuple[Tensor, Tensor]]
    loss: str
    batch: int
    steps: int
    clients: tuple[str, ...] = ("hospital-a",)
    """The parties that have features; where there are several, each has as many columns of the same rows."""

    def model(self) -> nn.Module:
        """The uncut model; its weights are the same in every process of one machine."""
        torch.manual_seed(MODEL_SEED)
        bottom, top = self.parts()
        return nn.Sequential(bottom, top) if len(self.clients) == 1 else Towers(bottom, top)

    def epochs(self, steps: int, shares: int = 1) -> tuple[Tensor, Tensor, int]:
        """The rows of as many batches as `steps` need, or of an epoch if that is less; how many epochs make `steps`.

        They can be parted into `shares` of as many whole batches each. Raises `ValueError` if there are too few.
        """
        x, y = self.rows()
        per_epoch = min(max(steps, shares), len(x) // self.batch) // shares * shares
        if not per_epoch:
            raise ValueError(f"{self.name} has {len(x) // self.batch} batches, too few for {shares} clients")
        used = per_epoch * self.batch
        return x[:used], y[:used], -(-steps // per_epoch)


def w1() -> tuple[nn.Module, nn.Module]:
    bottom = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    return bottom, nn.Sequential(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))


class TwoTowers(nn.Module):
    """A bottom for each half of the columns, outputs side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = _tower(), _tower()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x[:, :32]), self.right(x[:, 32:])], 1)


def _tower() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())


def w2() -> tuple[nn.Module, nn.Module]:
    return TwoTowers(), nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))


class Towers(Parts):
    """W2 as the parts of three parties: called with all columns it is the uncut model."""

    def __init__(self, bottoms: nn.Module, top: nn.Module) -> None:
        super().__init__([*((f"bottom_{name}", part) for name, part in bottoms.named_children()), ("top", top)])

    def forward(self, *tensors: Tensor) -> Tensor:
        *bottoms, top = self.children()
        columns = tensors[0].chunk(len(bottoms), 1)
        scores: Tensor = top(torch.cat([part(x) for part, x in zip(bottoms, columns, strict=True)], 1))
        return scores


def w3() -> tuple[nn.Module, nn.Module]:
    top = nn.Sequential(
        nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1)), top


class Bands(nn.Module):
    """A convolution for each half of an image's bands, outputs side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 32, 3, padding=1), nn.Conv2d(2, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x[:, :2]), self.right(x[:, 2:])], 1)


def images(count: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Ten noisy class patterns, so that the loss has something to learn."""
    g = torch.Generator().manual_seed(0)
    pattern = torch.randn(10, channels, side, side, generator=g)
    y = torch.randint(0, 10, (count,), generator=g)
    return 0.35 * pattern[y] + torch.randn(count, channels, side, side, generator=g), y


def columns(count: int = 20_000) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 64, generator=g)
    score = x @ (torch.randn(64, generator=g) / 8) + 0.5 * x[:, 0] * x[:, 40]
    return x, (torch.sigmoid(3 * score) > torch.rand(count, generator=g)).float()


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="W1", parts=w1, rows=lambda: images(6000, 1, 28), loss="cross_entropy", batch=64, steps=93),
        Workload(
            name="W2", parts=w2, rows=columns, loss="binary_cross_entropy_with_logits", batch=256, steps=780
        ),
        Workload(
            name="W2V",
            parts=w2,
            rows=columns,
            loss="binary_cross_entropy_with_logits",
            batch=256,
            steps=780,
            clients=("left", "right"),
        ),
        Workload(name="W3", parts=w3, rows=lambda: images(512, 3, 32), loss="cross_entropy", batch=64, steps=56),
        Workload(
            name="W3V",
            parts=lambda: (Bands(), w3()[1]),
            rows=lambda: images(512, 4, 32),
            loss="cross_entropy",
            batch=64,
            steps=56,
            clients=("left", "right"),
        ),
    )
}  # fmt: skip


# ---------------------------------------------------------------------- how a run goes


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a split run differs from the plainest one. `codec` as in `topk(share=0.1)+zstd`, on all cuts both ways."""

    micro_batches: int | Literal["auto"] = 1
    codec: str = ""
    staleness: int = 0
    cached_steps: int = 0
    clients: int = 1
    """With several each has its share of the rows, and a bottom of its own."""
    rate_mbit: float = 0.0
    delay_ms: float = 0.0
    """Of one way. Without rate and delay nothing stands between the parties but loopback."""
    warm_up: int = WARM_UP
    save_every: int = 0
    profile: bool = False
    """Each party writes what its own thread spent its time on into its folder."""

    @property
    def stages(self) -> tuple[Method, ...]:
        return tuple(methods_from(self.codec)) if self.codec else ()

    @property
    def exact(self) -> bool:
        """Whether the weights come out as the uncut model's, but for rounding."""
        lossless = all(method.name in LOSSLESS for method in self.stages)
        return lossless and self.clients == 1 and not self.staleness and not self.cached_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all processes of a comparison do. Each makes the rows anew."""

    workload: Workload
    x: Tensor
    y: Tensor
    epochs: int
    warm_up: int
    """So many steps are left out: until all is warm, every client has had its turn, and the trials are over."""

    @classmethod
    def of(cls, name: str, steps: int, setting: Setting) -> "Job":
        """Raises `ValueError` if there are too few rows."""
        workload, trial = WORKLOADS[name], TRIAL_STEPS if setting.micro_batches == "auto" else 0
        x, y, epochs = workload.epochs(steps + trial, setting.clients)
        turns = len(x) // workload.batch if setting.clients > 1 else 0
        return cls(
            workload=workload,
            x=x,
            y=y,
            epochs=max(epochs, 2) if setting.clients > 1 else epochs,
            warm_up=max(setting.warm_up, turns) + trial,
        )

    @property
    def steps(self) -> int:
        return self.epochs * len(self.x) // self.workload.batch


def clients_of(workload: Workload, setting: Setting) -> tuple[str, ...]:
    several = tuple(f"client-{number:02}" for number in range(setting.clients))
    return workload.clients if setting.clients == 1 else several
