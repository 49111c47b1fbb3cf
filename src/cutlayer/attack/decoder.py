"""Inversion by a decoder: a network learns to go from activations back to the inputs behind them.

Pairs to learn from come of auxiliary rows through the client's own bottom (`Decoder`; He, Zhang and Lee 2019, ACSAC,
"Model inversion attacks against collaborative inference", section 5, who query the bottom as a black box), or of a
share of the owner's rows that the attacker has got hold of (`AlignedDecoder`; the adversary of Vepakomma et al. 2020,
arXiv 2008.09161). Both see the bottom as it is in evaluation: where training differs (BatchNorm, dropout), they lose.
"""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Attack, Knowledge, Need
from cutlayer.attack.networks import ImageDecoder, TableDecoder, ridge
from cutlayer.attack.rebuilt import Measure, is_image, measure_fault, rebuilt_score, seen_inputs, some
from cutlayer.attack.scoring import latest
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError, PlanError

HELD = 0.1
"""Of the pairs so many are not learned from: they choose the epoch, so that few pairs do not make a worse answer."""
PENALTIES = (1e-10, 1e-6, 1e-4, 1e-2, 1.0)
LINE_MOST = 4096
"""Of activations with more numbers than this no line is fitted first: its cost is their third power."""
BATCH = 64
AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder(Attack):
    """With the client's bottom and auxiliary rows. `rows`: how many are scored, at most."""

    epochs: int = 20
    lr: float = 2e-3
    width: int = 64
    rows: int = 1024
    measure: Measure = ""
    word: ClassVar[str] = "decoder"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "auxiliary", "known bottom"})

    def __post_init__(self) -> None:
        _refuse(self)

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        """SSIM of images or R² of tables, over rows of the traffic; each row once."""
        if knowledge.known is None or knowledge.auxiliary is None:
            raise DataError("decoder needs auxiliary rows and the client's bottom: give both, or use aligned_decoder")
        scored = some(latest(traffic), self.rows, seed)
        z, truth = seen_inputs(self.word, scored)
        x_pairs = knowledge.auxiliary[0].float()
        z_pairs = through(knowledge.known, x_pairs)
        if z_pairs.shape[1:] != z.shape[1:]:
            raise DataError(
                f"the bottom given makes activations {list(z_pairs.shape[1:])}, those that crossed are "
                f"{list(z.shape[1:])}: give the bottom up to this cut"
            )
        rebuilt = learned(self, (z_pairs, x_pairs), z, pixels=knowledge.pixels, seed=seed)
        return rebuilt_score(self.name, truth, rebuilt, knowledge=knowledge, seed=seed, measure=self.measure)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedDecoder(Attack):
    """With a `share` of the owner's rows known to the attacker; scored on all others, `rows` of them at most."""

    share: float = 0.1
    epochs: int = 20
    lr: float = 2e-3
    width: int = 64
    rows: int = 1024
    measure: Measure = ""
    word: ClassVar[str] = "aligned_decoder"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations", "inputs"})

    def __post_init__(self) -> None:
        found = [] if 0 < self.share < 1 else [f"{self.word}: share = {self.share!r}: above 0 and below 1"]
        _refuse(self, found)

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        """SSIM of images or R² of tables, over rows that the attacker does not know; each row once."""
        once = latest(traffic)
        order = torch.randperm(len(once), generator=torch.Generator().manual_seed(seed))
        count = round(self.share * len(once))
        if not 2 <= count < len(once):
            raise DataError(f"a share of {self.share} of {len(once)} rows leaves none to learn from or to score")
        z_pairs, x_pairs = seen_inputs(self.word, once.chosen(order[:count]))
        z, truth = seen_inputs(self.word, once.chosen(order[count:][: self.rows]))
        rebuilt = learned(self, (z_pairs, x_pairs), z, pixels=knowledge.pixels, seed=seed)
        theirs = Knowledge(auxiliary=(x_pairs, None), pixels=knowledge.pixels)
        return rebuilt_score(self.name, truth, rebuilt, knowledge=theirs, seed=seed, measure=self.measure)


@torch.no_grad()
def through(bottom: nn.Module, inputs: Tensor) -> Tensor:
    """Activations `[N, ...]` that a copy of the bottom makes in evaluation; the caller's own stays as it is."""
    bottom = copy.deepcopy(bottom).cpu().eval().float()
    return torch.cat([bottom(part) for part in torch.split(inputs, AT_ONCE)])


def learned(
    attack: Decoder | AlignedDecoder,
    pairs: tuple[Tensor, Tensor],
    seen: Tensor,
    *,
    pixels: tuple[float, float],
    seed: int,
) -> Tensor:
    """Inputs rebuilt from the activations `seen`, by a decoder that learned from pairs of (activations, inputs)."""
    z, x = pairs
    centre, size = _scales(z)
    z, seen = (z - centre) / size, (seen - centre) / size
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z), generator=generator)
    held = order[: max(1, round(HELD * len(z)))]
    kept = order[len(held) :] if len(z) > 1 else order
    if is_image(x):
        return _image(attack, ((z[kept], x[kept]), (z[held], x[held])), seen, (pixels, generator))
    mean, deviation = x[kept].flatten(1).mean(0), x[kept].flatten(1).std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    x_flat = (x.flatten(1) - mean) / deviation
    z = z.flatten(1)
    rebuilt = _table(attack, ((z[kept], x_flat[kept]), (z[held], x_flat[held])), seen.flatten(1), generator)
    return (rebuilt * deviation + mean).view(len(seen), *x.shape[1:])


Pairs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(activations, inputs) to learn from, and those held out."""


def _image(
    attack: Decoder | AlignedDecoder, pairs: Pairs, seen: Tensor, how: tuple[tuple[float, float], torch.Generator]
) -> Tensor:
    pixels, generator = how
    (z, x), _ = pairs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        net = ImageDecoder(z.shape[1:], x.shape[1:], width=attack.width, pixels=pixels)
    return _trained(net, pairs, seen, attack, generator)


def _table(attack: Decoder | AlignedDecoder, pairs: Pairs, seen: Tensor, generator: torch.Generator) -> Tensor:
    (z, x), (z_held, x_held) = pairs
    lines = [(torch.zeros(z.shape[1], x.shape[1]), torch.zeros(x.shape[1]))]
    if z.shape[1] <= LINE_MOST:
        lines += [(w.float(), b.float()) for w, b in (ridge(z, x, penalty) for penalty in PENALTIES)]
    best = min(lines, key=lambda line: float(F.mse_loss(z_held @ line[0] + line[1], x_held)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        net = TableDecoder(best, width=4 * attack.width)
    return _trained(net, pairs, seen, attack, generator)


def _trained(
    net: nn.Module, pairs: Pairs, seen: Tensor, attack: Decoder | AlignedDecoder, generator: torch.Generator
) -> Tensor:
    """What the network answers at its best epoch, by the pairs held out; before the first is an epoch too."""
    (z, x), (z_held, x_held) = pairs
    optimizer = torch.optim.Adam(net.parameters(), attack.lr)
    best, answer = math.inf, torch.empty(0)
    for epoch in range(attack.epochs + 1):
        if epoch:
            net.train()
            for at in torch.split(torch.randperm(len(z), generator=generator), BATCH):
                if len(at) > 1:  # BatchNorm has nothing to say of a single row
                    optimizer.zero_grad()
                    F.mse_loss(net(z[at]), x[at]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        loss = float(F.mse_loss(_answers(net, z_held), x_held))
        if loss < best:
            best, answer = loss, _answers(net, seen)
    return answer


@torch.no_grad()
def _answers(net: nn.Module, z: Tensor) -> Tensor:
    net.eval()
    return torch.cat([net(part) for part in torch.split(z, AT_ONCE)])


def _scales(z: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations, by channel where activations have a place, else by number; none is nearly zero."""
    over = (0, 2, 3) if z.dim() == 4 else (0,)
    centre = z.mean(over, keepdim=True)
    size = z.std(over, correction=0, keepdim=True)
    return centre, size.clamp_min(1e-3 * float(size.max()) or 1.0)


def _refuse(attack: Decoder | AlignedDecoder, found: list[str] | None = None) -> None:
    found = list(found or []) + measure_fault(attack.word, attack.measure)
    found += [
        f"{attack.word}: {name} = {getattr(attack, name)!r}: at least {least}"
        for name, least in (("epochs", 0), ("width", 1), ("rows", 1))
        if getattr(attack, name) < least
    ]
    if not 0 < attack.lr < math.inf:
        found.append(f"{attack.word}: lr = {attack.lr!r}: a finite number above 0")
    if found:
        raise PlanError(found)
