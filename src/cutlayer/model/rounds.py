"""Whether the turn that just ended moved a shared segment as most turns before it did, or as a backdoor would.

SafeSplit: Rieger et al. 2025, NDSS (arXiv 2501.06650). After each client's turn the server compares its segment's last
states and goes back to the newest that is benign. A turn is benign if two analyses both place it in a majority:

- static: low frequencies of the two-dimensional DCT of its update, by Euclidean distance;
- dynamic: by which angle it turned each tensor, the *rotational distance* between two turns being that between their
  vectors of angles.

With `slack = 1` the majorities are the ⌊N/2⌋ + 1 turns that are nearest to the others, as in SafeSplit. How many
frequencies count as low, the root of squares over tensors, and the rotational distance as the distance between angles
are readings of ours, not checked against the paper's own formulas or figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.errors import PlanError

FEWEST_TURNS = 3
"""Of fewer, no two outvote a third."""

Turn = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""From one state to another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a window of states. `scores`: of each turn, the oldest first, static and dynamic; low is usual.

    `newest_benign`: the place of a state in the window; 0 where no turn is benign. `benign`: whether that is the last.
    """

    benign: bool
    newest_benign: int
    scores: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnCheck:
    """Judges the newest turn by the last `window` turns.

    `low`: which part of the frequencies along each axis counts as low. `slack`: in an analysis' majority are turns
    whose score is at most so many times the greatest of the ⌊N/2⌋ + 1 lowest. 1 is SafeSplit's rule; it turns down
    about half of all honest turns, since each analysis leaves out nearly half. A larger one turns down fewer, and may
    miss more.
    """

    window: int = 10
    low: float = 0.25
    slack: float = 1.0

    def __post_init__(self) -> None:
        faults = []
        if self.window < FEWEST_TURNS:
            faults.append(
                f"training.turn_check.window = {self.window}: at least {FEWEST_TURNS} turns; leave it out for no check"
            )
        if not 0 < self.low <= 1:
            faults.append(f"training.turn_check.low = {self.low}: a part of the frequencies, above 0 and at most 1")
        if not 1 <= self.slack < math.inf:
            faults.append(f"training.turn_check.slack = {self.slack}: a finite number, at least 1")
        if faults:
            raise PlanError(faults)

    def judge(self, states: Sequence[Mapping[str, Tensor]]) -> Verdict:
        """Judge the last of `states`: the segment's parameters before the first turn and after each turn, oldest first.

        Of more than `window` turns the newest are looked at; fewer than 3 turns are benign. `newest_benign` is a place
        in `states`. Running statistics are better left out: they are larger than any weight.

        Raises:
            ValueError: no states, or states that differ in their names or shapes.
        """
        _check_alike(states)
        first = max(0, len(states) - 1 - self.window)
        turns = list(zip(states[first:-1], states[first + 1 :], strict=True))
        static, dynamic = self._scored(turns)
        both = self._majority(static) & self._majority(dynamic)
        newest = first + 1 + max(both) if both else first
        return Verdict(
            benign=newest == len(states) - 1,
            newest_benign=newest,
            scores=tuple(zip(static, dynamic, strict=True)),
        )

    def benign(self, turns: Sequence[Turn]) -> set[int]:
        """Which of these turns both analyses place in a majority; of fewer than 3 all.

        They need be no chain: a turn that was turned down is still one of those that others are compared with.
        """
        static, dynamic = self._scored(turns)
        return self._majority(static) & self._majority(dynamic)

    def _scored(self, turns: Sequence[Turn]) -> tuple[list[float], list[float]]:
        """By either analysis; of fewer than 3 turns none is unusual."""
        if len(turns) < FEWEST_TURNS:
            return [0.0] * len(turns), [0.0] * len(turns)
        static = _scores([low_frequencies(before, after, part=self.low) for before, after in turns])
        return static, _scores([angles(before, after) for before, after in turns])

    def _majority(self, scores: Sequence[float]) -> set[int]:
        bound = self.slack * sorted(scores)[len(scores) // 2] if scores else 0.0
        return {turn for turn, score in enumerate(scores) if math.isfinite(score) and score <= bound}


def low_frequencies(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, part: float) -> Tensor:
    """The low frequencies of a turn's update `[frequencies]`: of each tensor's two-dimensional DCT the first `part`.

    A tensor is taken as a matrix, its first dimension against all others.
    """
    kept = []
    for name, old in before.items():
        update = after[name].detach().double() - old.detach().double()
        matrix = update.flatten(1) if update.dim() > 1 else update.reshape(-1, 1)
        rows, columns = (math.ceil(part * size) for size in matrix.shape)
        kept.append(dct(dct(matrix, dim=0)[:rows], dim=1)[:, :columns].reshape(-1))
    return torch.cat(kept)


def angles(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
    """By which angle a turn turned each tensor `[tensors]`, in radians; a right one if it came from or to nothing."""
    found = []
    for name, old in before.items():
        u, v = (_unit(tensor.detach().double().reshape(-1)) for tensor in (old, after[name]))
        if u is None or v is None:
            found.append(0.0 if u is v else math.pi / 2)
        else:  # W. Kahan's formula: the arc cosine is off by 1e-8 for small angles
            found.append(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))
    return torch.tensor(found, dtype=torch.float64)


def dct(values: Tensor, *, dim: int) -> Tensor:
    """The orthonormal DCT-II along a dimension, by an FFT of as many points (Makhoul 1980, IEEE TASSP 28(1))."""
    x = values.movedim(dim, -1)
    size = x.shape[-1]
    if values.numel() == 0:
        return values
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    turn = torch.exp(-0.5j * math.pi * torch.arange(size, dtype=torch.float64) / size)
    found = (torch.fft.fft(folded) * turn.to(x.device)).real * math.sqrt(2 / size)
    found[..., 0] *= math.sqrt(0.5)
    moved: Tensor = found.movedim(-1, dim)
    return moved


def _unit(vector: Tensor) -> Tensor | None:
    length = float(vector.norm())
    return vector / length if length else None


def _scores(points: Sequence[Tensor]) -> list[float]:
    """Of each turn, the sum of the distances to the ⌊N/2⌋ others nearest to it: a majority, with itself."""
    x_NF = torch.stack(list(points))  # noqa: N806
    distances_NN = torch.cdist(x_NF, x_NF, compute_mode="donot_use_mm_for_euclid_dist")  # noqa: N806
    distances_NN = distances_NN.nan_to_num(nan=math.inf, posinf=math.inf).fill_diagonal_(0.0)  # noqa: N806
    nearest = distances_NN.sort(dim=1).values[:, 1 : len(points) // 2 + 1]
    return [math.fsum(row) for row in nearest.tolist()]


def _check_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    if not states:
        raise ValueError("there are no states to judge")
    shapes = {name: tensor.shape for name, tensor in states[0].items()}
    if any({name: tensor.shape for name, tensor in state.items()} != shapes for state in states):
        raise ValueError("the states differ in their names or shapes")
