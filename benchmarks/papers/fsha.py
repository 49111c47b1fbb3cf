"""Feature-space hijacking of a client's images: how well a malicious server rebuilds them, beside what was published.

    python benchmarks/papers/fsha.py [--case published|narrow|quick] [--data FILE.npz] [--iterations 9500]
        [--folder DIR]

Pasquini, Ateniese and Bernaschi 2021 (arXiv 2012.02670) on MNIST, level 4: the client's segment is a ResNet's first
four stages, 64 to 256 channels wide; the client has the training images, the attacker the test images; batches of 64.
The squared error is a pixel's, of images of 32 by 32 with pixels from -1 to 1, over the last 32 mini-batches as they
crossed. There the mean image alone scores 0.226 (at 28 by 28 it scores 0.27, and 0.067 with pixels from 0 to 1).

As in the authors' code: networks' widths and depths, learning rates, the gradient penalty's weight. Not as there: the
decoder gives the difference to the mean image and no tanh; D's Adam has the betas of Gulrajani et al. (0.5, 0.9);
images have one channel, not three alike; the client's batch norm works as in training. It wants a GPU's hours: an
iteration takes 4 s of one core. `narrow` is the same with a quarter of the channels, two blocks in D in the place of
six, and larger learning rates: 0.3 s.

FILE has `x_train y_train x_test y_test`, uint8 images. In DIR the run is kept every 100 iterations (`fsha.safetensors`)
and goes on from there. `quick` is another case: level 1 on images of 16 by 16, its pixels' error after 900 iterations
0.45 to 0.6 of the mean image's (it plays a game, and another processor's rounding is enough for another end); it takes
a minute or two on one core, and fails above QUICK_MOST.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha
from cutlayer.attack.learner import Learner, within
from cutlayer.attack.traffic import Score, Traffic

PUBLISHED = {500: 0.1511, 1000: 0.1102, 5000: 0.0320, 9500: 0.0193}
BATCH = 64
SCORED = 32
"""Mini-batches whose rows are scored, the last before a mark."""
QUICK_MOST = 0.75
"""Of the mean image's error, that the quick case has at its end; honest gradients leave 1 or more."""
KEPT_EVERY = 100
SEED = 1
PIXELS = (-1.0, 1.0)
AREA = (PIXELS[1] - PIXELS[0]) ** 2
"""Squared errors of such pixels, for one of pixels from 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Of the client, `width` channels at its first convolution and its stages as in the paper; its learning rate."""

    level: int
    width: int
    side: int
    client_lr: float
    attack: Fsha
    marks: tuple[int, ...] = (100, 250, *PUBLISHED)


def published() -> Case:
    attack = Fsha(width=64, blocks=6, lr=1e-5, critic_lr=1e-4, penalty=500.0, measure="mse")
    return Case(level=4, width=64, side=32, client_lr=1e-5, attack=attack)


def narrow() -> Case:
    attack = Fsha(width=16, blocks=2, lr=1e-3, critic_lr=2e-3, measure="mse")
    return Case(level=4, width=16, side=32, client_lr=1e-3, attack=attack)


def quick() -> Case:
    attack = Fsha(width=8, blocks=1, lr=1e-3, critic_lr=2e-3, measure="mse")
    return Case(level=1, width=8, side=16, client_lr=2e-3, attack=attack, marks=(300, 600, 900))


CASES = {"published": published, "narrow": narrow, "quick": quick}


class Stage(nn.Module):
    """A residual block, which may halve the maps' sides."""

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wide, 3, stride, padding=1)
        self.second = nn.Conv2d(wide, wide, 3, padding=1)
        self.beside = nn.Conv2d(channels, wide, 3, stride, padding=1) if stride > 1 else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        answer: Tensor = self.beside(maps) + self.second(self.first(maps.relu()).relu())
        return answer


def client(case: Case) -> nn.Module:
    """The client's segment, up to the level, with weights as Keras draws them."""
    w = case.width
    stages = [Stage(w, w, 1), Stage(w, 2 * w, 2), Stage(2 * w, 2 * w, 1), Stage(2 * w, 4 * w, 2)][: case.level]
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        made = nn.Sequential(nn.Conv2d(1, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU(), nn.MaxPool2d(2), *stages)
        for module in made.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return made


def images(path: Path, part: str, side: int) -> Tensor:
    """`[N, 1, side, side]`, with pixels from -1 to 1."""
    with np.load(path) as file:
        grey = torch.from_numpy(file[f"x_{part}"]).float()[:, None]
    return F.interpolate(grey, (side, side), mode="bilinear") / 127.5 - 1


@dataclass(kw_only=True)
class Run:
    """The two parties, in one loop."""

    case: Case
    private: Tensor
    public: Tensor
    iteration: int = 0

    def __post_init__(self) -> None:
        self.client = Learner(client(self.case), self.case.client_lr, self.private.device)
        self.recent: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            example = self.client.network.eval()(self.private[:BATCH])
        self.client.network.train()
        self.case.attack.begin(Knowledge(auxiliary=(self.public, None), pixels=PIXELS), example, SEED)

    def step(self) -> None:
        """One training step of the client, by what the attacker tells it."""
        drawn = torch.Generator().manual_seed(SEED * 10**6 + self.iteration)
        x = self.private[torch.randint(len(self.private), (BATCH,), generator=drawn)]
        z = self.client.network(x)
        told = self.case.attack.answer(z.detach(), None)
        # A loss whose gradient is the one that came, of the sum over rows: the client's optimizer divides by them.
        self.client.step(self.client.gradients((z * told).sum() / BATCH))
        self.iteration += 1
        self.recent = [*self.recent[1 - SCORED :], (z.detach(), x)]

    def score(self) -> Score:
        """Of the last mini-batches, as they crossed; its errors are of pixels from 0 to 1."""
        activations, inputs = (torch.cat(parts) for parts in zip(*self.recent, strict=True))
        traffic = Traffic(steps=torch.zeros(len(inputs), dtype=torch.int64), activations=activations, inputs=inputs)
        return self.case.attack.score(traffic)

    def until(self, last: int, folder: Path | None) -> Iterator[tuple[int, Score]]:
        """Each mark up to the `last` iteration, and its score."""
        while self.iteration < last:
            self.step()
            if self.iteration in self.case.marks or self.iteration == last:
                yield self.iteration, self.score()
            if folder is not None and (self.iteration % KEPT_EVERY == 0 or self.iteration == last):
                self.save(folder / "fsha.safetensors")

    def save(self, path: Path) -> None:
        parts = {"client": self.client.tensors(), "attack": self.case.attack.tensors()}
        told = {f"{part}.{name}": t.contiguous() for part, tensors in parts.items() for name, t in tensors.items()}
        save_file(told | {"iteration": torch.tensor(self.iteration)}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def restore(self, path: Path) -> None:
        told = load_file(path)
        self.client.restore(within(told, "client"))
        self.case.attack.restore(within(told, "attack"))
        self.iteration = int(told["iteration"])


def found(named: Path | None) -> Path | None:
    """The file that is named, else the shared one, else that of the environment."""
    if named is not None:
        return named
    usual = [Path(__file__).parents[2] / "../shared/data/mnist.npz", Path(os.environ.get("CUTLAYER_DATA", "."))]
    return next((path for path in usual if path.is_file()), None)


def mean_image(private: Tensor, public: Tensor) -> float:
    """What always answering the attacker's mean image scores."""
    return float((private - public.mean(0)).double().square().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--folder", type=Path, help="where the run is kept, and gone on from")
    parser.add_argument("--case", choices=CASES, default="published")
    parser.add_argument("--quick", action="store_const", const="quick", dest="case", help="the same as --case quick")
    chosen = parser.parse_args()
    path = found(chosen.data)
    if path is None:
        sys.stdout.write("left out: no MNIST; name a file with --data, or in CUTLAYER_DATA\n")
        return 0
    case = CASES[chosen.case]()
    run = Run(case=case, private=images(path, "train", case.side), public=images(path, "test", case.side))
    if chosen.folder is not None:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        if (kept := chosen.folder / "fsha.safetensors").exists():
            run.restore(kept)
    guess = mean_image(run.private, run.public)
    sys.stdout.write(f"pixels from -1 to 1; the mean image: {guess:.4f}; from iteration {run.iteration}\n")
    begun, error = time.perf_counter(), guess
    for iteration, score in run.until(chosen.iterations or case.marks[-1], chosen.folder):
        error, low, high = (AREA * value for value in (score.value, score.low, score.high))
        known = f"published {PUBLISHED[iteration]:.4f}" if iteration in PUBLISHED and case.level == 4 else ""
        sys.stdout.write(
            f"{iteration:6d}  MSE {error:.4f} [{low:.4f}, {high:.4f}], {error / guess:.2f} of the mean image's"
            f"  {time.perf_counter() - begun:.0f} s  {known}\n"
        )
        sys.stdout.flush()
    if chosen.case == "quick" and run.iteration >= case.marks[-1]:
        assert error < QUICK_MOST * guess, f"the attack's error is more than {QUICK_MOST:.0%} of the mean image's"
    return 0


if __name__ == "__main__":
    sys.exit(main())
