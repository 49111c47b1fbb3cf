"""Mini-batches with wrong labels, by which the owner of the labels finds out whether a server looks at them.

The plan says by which chance a mini-batch is one of these (`[probe]`), the owner's secret which: to everybody else its
tickets look like any others. The owner's segments do not step on what comes back, so nothing of it is learned here;
those of other parties do. The owner has one step under way at a time.
"""

from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256

import torch
from torch import Tensor

from cutlayer.errors import RunError
from cutlayer.model.state import ReplicaState
from cutlayer.observe.facts import Alarmed, Leaked, Noticed
from cutlayer.observe.splitguard import THRESHOLD, SplitGuard
from cutlayer.plan.plan import Plan
from cutlayer.plan.streams import stream_seed
from cutlayer.protocol.events import Replica, Run
from cutlayer.protocol.messages import Backward, Forward, Ticket

Tensors = tuple[Tensor, ...]
Place = tuple[int, int]
"""A turn, and a step in it."""
MOST_NUMBERS = 2**20
"""So many numbers of a mini-batch's gradient at most are looked at, evenly spread."""


class Probing:
    """The probes of party `name`, if the plan has any and the party has labels.

    `secret` is the key of its draws. `tell` hears what the probes find.
    """

    def __init__(self, plan: Plan, name: str, *, secret: bytes, tell: Callable[..., None]) -> None:
        self._plan, self._name, self._tell, self._terms = plan, name, tell, plan.terms.probe
        self._secret = sha256(b"probes" + secret).digest()
        self._probes = bool(self._terms.share) and any(s.kind == "labels" for s in plan.sources_of(name))
        self._begun = 0
        """How many steps of this party's rows."""
        self._place: Place | None = None
        self._fake = False
        """Whether the step at that place is a probe."""
        self._came: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
        """Of that step, by edge and micro-batch: the gradients."""
        self._guards: defaultdict[str, SplitGuard] = defaultdict(SplitGuard)
        self._alarmed: set[str] = set()

    def _is_mine(self, ticket: Ticket) -> bool:
        return self._probes and ticket.owner == self._name and ticket.purpose == "train"

    def labels(self, run: Run, tensors: Tensors, classes: int) -> Tensors:
        """The labels of a ticket of this party's rows, or wrong ones if it is a probe. `classes`: 0 for numbers."""
        ticket, place = run.ticket, (run.ticket.turn, run.ticket.step)
        if not self._is_mine(ticket):
            return tensors
        if place != self._place:
            self._place = place
            self._came.clear()
            self._fake = self._begun >= self._terms.after and self._drawn("fake") < self._terms.share
            self._begun += 1
        if not self._fake:
            return tensors
        generator = torch.Generator().manual_seed(stream_seed(self._secret, "labels", *place, ticket.micro))
        return tuple(wrong(labels, classes, generator) for labels in tensors)

    def is_probe(self, ticket: Ticket) -> bool:
        """Whether a ticket is a probe of this party's."""
        return self._fake and self._is_mine(ticket) and (ticket.turn, ticket.step) == self._place

    def came(self, message: Forward | Backward, tensors: Tensors) -> None:
        """What a peer sent: gradients of a step are kept until it is through."""
        if isinstance(message, Backward) and tensors and self._is_mine(message.ticket):
            flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
            self._came[message.edge][message.ticket.micro] = flat.cpu()

    def skips(self, replica: Replica) -> bool:
        """Whether a replica of this party's stays as it is, since the step that is through was a probe.

        What came for the step is judged. Raises `RunError` where an alarm is to end the run.
        """
        if not self._probes or replica[1] != self._name:
            return False
        for edge in self._plan.topology.outputs(replica[0]):
            if parts := self._came.pop(edge.name, None):
                gradient = torch.cat([parts[micro] for micro in sorted(parts)])
                self._judge(edge.name, gradient[:: -(-len(gradient) // MOST_NUMBERS)])
        return self._fake

    # ------------------------------------------------------------------ what it says of the server

    def _judge(self, edge: str, gradient: Tensor) -> None:
        """A whole mini-batch's gradient; of an epoch's last rows, which are fewer, it would not compare."""
        if self._begun <= self._terms.after or len(gradient) < self._guards[edge].size:
            return
        if len(gradient) > self._guards[edge].size:
            self._guards[edge] = SplitGuard()
        guard = self._guards[edge]
        if not self._fake:
            guard.regular(gradient, half=int(self._drawn("half") < 0.5))
        elif (score := guard.fake(gradient)) is not None:
            self._scored(edge, guard, score)

    def _scored(self, edge: str, guard: SplitGuard, score: float) -> None:
        alarm = guard.alarmed
        leaked = Leaked(
            party=self._name, edge=edge, statistic="probe", value=score, chance=0.0, threshold=THRESHOLD, alarm=alarm
        )
        self._tell(leaked)
        if not alarm or edge in self._alarmed:
            return
        self._alarmed.add(edge)
        sentence = (
            f"{self._name}: gradients that come back on {edge} are the same for wrong labels (SplitGuard "
            f"{guard.mean:.2f}, below {THRESHOLD}): the server may train this party's segment for a purpose of its "
            "own, or has not yet learned anything of the labels (probe.after)"
        )
        alarmed = Alarmed(
            party=self._name, edge=edge, statistic="probe", batches=self._begun, false_alarms=None, sentence=sentence
        )
        self._tell(alarmed, Noticed(party=self._name, sentence=sentence))
        if self._plan.terms.on_alarm == "end":
            raise RunError(sentence)

    def _drawn(self, what: str) -> float:
        """From 0 to 1, for the step under way; nobody else can know it."""
        assert self._place is not None
        return stream_seed(self._secret, what, *self._place) / 2**63

    # ------------------------------------------------------------------ saves

    def state(self) -> ReplicaState:
        """What is remembered from one step to the next; nothing without probes."""
        if not self._probes:
            return ReplicaState(tensors={}, counts={})
        tensors = {
            f"{edge}|{name}": tensor for edge, guard in self._guards.items() for name, tensor in guard.tensors().items()
        }
        return ReplicaState(tensors=tensors, counts={"begun": self._begun})

    def load(self, state: ReplicaState | None) -> None:
        """Remember what a save remembered, and nothing else."""
        self._begun = state.counts["begun"] if state else 0
        self._place, self._fake = None, False
        self._came.clear()
        self._guards.clear()
        kept: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in state.tensors.items() if state else ():
            edge, name = key.split("|")
            kept[edge][name] = tensor
        for edge, tensors in kept.items():
            self._guards[edge].load(tensors)
        self._alarmed = {edge for edge, guard in self._guards.items() if guard.alarmed}


def wrong(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Each label another one than it is: of class numbers any other class, of 0 and 1 the other, of numbers those of
    other rows. What is no class, such as an ignored label, stays.

    >>> wrong(torch.tensor([0, 1, 1]), 2, torch.Generator())
    tensor([1, 0, 0])
    """
    if classes >= 2:
        shifts = torch.randint(1, classes, labels.shape, generator=generator).to(labels)
        return torch.where((labels >= 0) & (labels < classes), (labels + shifts) % classes, labels)
    if bool(((labels == 0) | (labels == 1)).all()):
        return 1 - labels if labels.dtype != torch.bool else ~labels
    shift = int(torch.randint(1, max(2, len(labels)), (), generator=generator))
    return labels.roll(shift, 0)
