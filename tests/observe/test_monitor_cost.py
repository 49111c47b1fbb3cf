"""What the monitor takes of a run's time, by a clock of the test's own."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cutlayer.observe.facts import Alarmed, Leaked
from cutlayer.observe.monitor import Monitor
from cutlayer.observe.tap import Seen
from cutlayer.observe.watch import Watch
from cutlayer.protocol.messages import Ticket

pytestmark = pytest.mark.alone

STEPS = 800


@pytest.mark.slow
def test_it_takes_a_twentieth_of_a_runs_time_at_most() -> None:
    """Both ends of a cut and both parties' work, a few milliseconds a step, with all that it measures by default."""
    torch.manual_seed(0)
    bottom = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1))
    top = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 10))
    x, y = torch.rand(640, 1, 28, 28), torch.randint(0, 10, (640,))
    facts: list[Leaked | Alarmed] = []
    monitor, within_s = Monitor(Watch(classes=10), facts.append, seed=0), 0.0
    began_s = time.perf_counter()
    for step in range(STEPS):
        places = torch.randint(0, 640, (64,))
        z = bottom(x[places])
        leaf = z.detach().requires_grad_()
        torch.autograd.backward(F.cross_entropy(top(leaf), y[places]))
        assert leaf.grad is not None
        z.backward(leaf.grad)
        crossed = Seen(
            party="hospital-a", peer="lab", edge="bottom->top", way="forward", sent=True, tensor=z.detach(),
            ticket=Ticket(turn=0, owner="hospital-a", step=step, micro=0, purpose="train"),
            inputs=(x[places],), labels=y[places], places=places,
        )  # fmt: skip
        answered = {"edge": "bottom->top", "way": "backward", "tensor": leaf.grad, "ticket": crossed.ticket}
        asked_s = time.perf_counter()
        monitor(crossed)
        monitor(Seen(party="hospital-a", peer="lab", sent=False, **answered))
        monitor(Seen(party="lab", peer="hospital-a", sent=True, labels=y[places], **answered))
        within_s += time.perf_counter() - asked_s
    assert within_s <= 0.05 * (time.perf_counter() - began_s)
    assert {fact.statistic for fact in facts} == {"distance_correlation", "decoder", "label_auc", "hijack"}
