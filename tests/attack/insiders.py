"""A run with an insider at its server, in one loop: what crosses, and rows for it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha
from cutlayer.attack.hijack import Hijack, Insider, Onlooker
from cutlayer.attack.pcat import Pcat
from cutlayer.attack.sdar import Sdar
from cutlayer.attack.traffic import Traffic

HIJACKS: list[Callable[..., Hijack]] = [Fsha]
ONLOOKERS: list[Callable[..., Onlooker]] = [Pcat, Sdar]
INSIDERS: list[Callable[..., Insider]] = [*HIJACKS, *ONLOOKERS]
COLUMNS, CUT, CLASSES, BATCH, SCORED = 6, 4, 3, 64, 200


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Columns that are mixtures of three sources, each skewed in a way of its own, and which source is the largest.

    Who sees only how features are spread could not tell sources apart that are spread alike, or evenly to both sides.
    """
    generator = torch.Generator().manual_seed(seed)
    even = torch.rand(count, 3, generator=generator)
    sources = torch.stack((-even[:, 0].log(), even[:, 1] ** 2 * 2, 1.5 * even[:, 2] ** 0.5), 1)
    mixing = torch.rand(3, COLUMNS, generator=torch.Generator().manual_seed(99))
    return sources @ mixing, sources.argmax(1)


def known(count: int = 600, bottom: Callable[[], nn.Module] | None = None) -> Knowledge:
    return Knowledge(auxiliary=rows(count, 2), bottom=bottom, classes=CLASSES)


def linear() -> nn.Module:
    return nn.Linear(COLUMNS, CUT)


def with_relu() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 16), nn.ReLU(), nn.Linear(16, CUT), nn.ReLU())


def narrow() -> nn.Module:
    return nn.Linear(COLUMNS, CLASSES - 1)


def pins() -> nn.Module:
    """A top through which only one client's features give the right answers: as many as softmax leaves free."""
    return nn.Linear(CLASSES - 1, CLASSES)


def drops() -> nn.Module:
    """Its batch norms and dropout change with whatever passes, and draw globally."""
    return nn.Sequential(nn.Linear(CUT, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, CLASSES))


def made(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What came of a run: both segments, and the last crossing of the client's rows."""

    client: nn.Module
    top: nn.Module
    traffic: Traffic


def run(
    insider: Insider | None,
    *,
    steps: int,
    knowledge: Knowledge,
    build: Callable[[], nn.Module] = linear,
    build_top: Callable[[], nn.Module] = drops,
    lr: float = 1e-3,
) -> Ran:
    """The client learns by Adam from what it is told; an honest server by the labels. Global draws begin alike."""
    client, top, (x, y) = made(build, 0), made(build_top, 1), rows(600, 1)
    adams = [torch.optim.Adam(module.parameters(), lr=lr) for module in (client, top)]
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(7)
    for step in range(steps):
        at = torch.randint(len(x), (BATCH,), generator=generator)
        for adam in adams:
            adam.zero_grad()
        z = client(x[at])
        if step == 0 and insider is not None:
            insider.begin(knowledge, z.detach(), 3)
        z.backward(_gradient(insider, z.detach(), y[at], top))
        for adam in adams:
            adam.step()
    x, y = x[:SCORED], y[:SCORED]
    with torch.no_grad():
        seen = client(x)
    traffic = Traffic(steps=torch.full((len(x),), steps), activations=seen, inputs=x, labels=y)
    return Ran(client=client, top=top, traffic=traffic)


def _gradient(insider: Insider | None, z: Tensor, labels: Tensor, top: nn.Module) -> Tensor:
    if isinstance(insider, Fsha):
        return insider.answer(z, labels)
    z = z.requires_grad_()
    torch.autograd.backward(F.cross_entropy(top(z), labels, reduction="sum"))
    if isinstance(insider, Pcat | Sdar):
        insider.watch(z.detach(), labels, top)
    assert z.grad is not None
    return z.grad
