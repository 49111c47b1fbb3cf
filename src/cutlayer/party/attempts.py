"""A run, taken up as often as it must be: each attempt is a new party and a new session, from the newest save."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from secrets import token_bytes
from typing import Any

from torch import Tensor

from cutlayer.data.loader import Loader
from cutlayer.defence.ledger import Ledger
from cutlayer.errors import CutlayerError, Interrupted
from cutlayer.observe.facts import Noticed, Observer
from cutlayer.observe.tap import Tap
from cutlayer.party.agreement import Agreement
from cutlayer.party.guard import Guard
from cutlayer.party.loop import Loop, ShutDownError
from cutlayer.party.network import Network, address_of
from cutlayer.party.openings import Openings
from cutlayer.party.party import Party
from cutlayer.party.replicas import Replicas
from cutlayer.party.saver import Saver
from cutlayer.party.sealed import Seals
from cutlayer.party.setting import Setting
from cutlayer.plan.membership import NEVER
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Event
from cutlayer.protocol.messages import NONCE_BYTES, Task
from cutlayer.protocol.resuming import Standing
from cutlayer.transport.channel import Channel
from cutlayer.transport.listener import Listener


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a party brings to the use of a model: the weights of its segments, by their names in the uncut model.

    A conductor may do without `absent` parties if the plan was trained for that.
    """

    weights: Mapping[str, Tensor]
    absent: tuple[str, ...] = ()
    by_owner: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """At a server whose replicas differ by client: a client's own weights."""


@dataclass(kw_only=True)
class Maker:
    """Makes party `name` anew for each attempt, from what stays the same."""

    agreement: Agreement
    name: str
    secret: bytes
    loader: Loader | None
    observers: Sequence[Observer]
    seals: Seals | None
    device: str
    prediction: Prediction | None
    saver: Saver | None
    post: Callable[[Event], None] | None = None
    ledger: Ledger | None = None
    openings: Openings | None = None
    taps: Sequence[Tap] = ()

    @property
    def plan(self) -> Plan:
        return self.agreement.plan

    def standing(self, *, again: bool, without: frozenset[str]) -> Standing:
        """What the party has of the run now."""
        if self.saver is None:
            return Standing(absent=frozenset(self.prediction.absent if self.prediction else ()))
        number, present = self.openings.newest if self.openings else (NEVER, ())
        return replace(self.saver.standing(again=again, without=without), opened=number, present=present)

    def patience_s(self, standing: Standing) -> float:
        """How long it tries to reach the conductor."""
        limits = self.plan.terms.limits
        return limits.rejoin_timeout_s if standing.again else limits.join_timeout_s

    def make(self, standing: Standing) -> Party:
        """A party that joins the run with this standing."""
        prediction = self.prediction
        task: Task = "predict" if prediction else "train"
        party = Party(
            self.plan,
            self.name,
            replicas=Replicas(self.plan, self.agreement.parts_of, device=self.device),
            secret=self.secret,
            loader=self.loader,
            observers=self.observers,
            seals=self.seals,
            setting=Setting(
                nonce=token_bytes(NONCE_BYTES),
                task=task,
                standing=standing,
                saver=self.saver,
                post=self.post,
                ledger=self.ledger,
                openings=self.openings,
                taps=self.taps,
            ),
        )
        if prediction:
            for owner in self.plan.owners:
                party.restore(owner, prediction.by_owner.get(owner, prediction.weights))
        if standing.over:
            party.take_up_last()
        return party

    def tell_refusals(self) -> None:
        """Say which saves were not taken, and why."""
        for sentence in self.saver.refusals if self.saver else ():
            for observer in self.observers:
                observer(Noticed(party=self.name, sentence=f"a save is refused: {sentence}"))

    def finished(self) -> Party | None:
        """The party as the run left it, if its part is over already."""
        if self.saver is None or not self.saver.finished:
            return None
        party = self.make(self.saver.standing(again=True))
        party.take_up_last()
        party.over = True
        party.tell(Noticed(party=self.name, sentence=f"{self.name}'s part of this run is over already"))
        return party


FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 10.0
FAREWELL_S = 2.0
"""How long a party whose part is over tries to say so to a conductor that may still wait for it."""
_dice = random.SystemRandom()


def attempts(maker: Maker, network: Network, guard: Guard) -> Party:
    """Join the run, and again whenever it is interrupted; returns the party of the last attempt."""
    maker.tell_refusals()
    left = maker.finished()
    if left is not None and maker.saver is not None and maker.plan.conductor == maker.name:
        maker.saver.close()
        return left
    loop = Loop(maker.plan, maker.name, guard)
    maker.post = loop.post
    door = Door(maker, network, guard, loop)
    again, without, pause_s = False, frozenset[str](), FIRST_PAUSE_S
    sent = received = 0
    try:
        if left is not None:
            _say_goodbye(maker, door, loop)
            return left
        while True:
            standing = maker.standing(again=again, without=without | guard.denied)
            party, began = maker.make(standing), time.monotonic()
            party.sent_before, party.received_before = sent, received
            try:
                loop.run(party, door.links(party, patience_s=maker.patience_s(standing)))
            except ShutDownError:
                raise
            except Interrupted as error:
                party.tell(Noticed(party=maker.name, sentence=f"{error}; {maker.name} waits to take the run up again"))
                again, without, sent, received = True, error.without, party.sent_bytes, party.received_bytes
            else:
                return party
            pause_s = FIRST_PAUSE_S if time.monotonic() - began > LONGEST_PAUSE_S else min(2 * pause_s, LONGEST_PAUSE_S)
            time.sleep(pause_s * _dice.uniform(0.5, 1.0))
    finally:
        loop.close()
        if maker.saver is not None:
            maker.saver.close()


def _say_goodbye(maker: Maker, door: "Door", loop: Loop) -> None:
    """Killed after its part was over, a member may have been about to say so: the conductor waits for its word."""
    assert maker.saver is not None
    party = maker.make(replace(maker.saver.standing(again=True), over={}))
    with suppress(CutlayerError):
        loop.run(party, door.links(party, patience_s=FAREWELL_S))


class Door:
    """How a party's links come about: the conductor listens, once for all attempts; others dial in each."""

    def __init__(self, maker: Maker, network: Network, guard: Guard, loop: Loop) -> None:
        self._maker, self._network, self._loop = maker, network, loop
        plan, terms = maker.plan, maker.plan.terms
        self._common: dict[str, Any] = {
            "party": maker.name,
            "limits": terms.limits,
            "pins": terms.pins,
            "insecure_plaintext_on_loopback": network.insecure_plaintext_on_loopback,
        }
        self._listener: Listener | None = None
        self._conducts = plan.conductor == maker.name
        if self._conducts:
            address = network.listen or address_of(terms.parties[maker.name].address, maker.name)
            self._listener = network.listener(address, allowed=guard, on_refused=loop.refused, **self._common)
            self._listener.on_trouble, self._listener.newcomers = loop.notice, guard.newcomers
            loop.listen(self._listener)

    def links(self, party: Party, *, patience_s: float) -> list[Channel]:
        """The links with which an attempt begins. Raises `ChannelTimeout` after so long."""
        plan, name = self._maker.plan, self._maker.name
        if self._listener is not None:
            party.tell(Noticed(party=name, sentence=f"{name} listens on port {self._listener.port}"))
            return []
        server = plan.conductor
        address = self._network.connect or address_of(plan.terms.parties[server].address, server)
        party.tell(Noticed(party=name, sentence=f"{name} dials {server} at {address[0]}:{address[1]}"))
        link = self._network.dial(address, peer=server, give_up_after_s=patience_s, **self._common)
        link.on_trouble = self._loop.notice
        return [link]
