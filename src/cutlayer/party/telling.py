"""What a party tells its observers of messages and turns: facts, without a tensor."""

from collections.abc import Callable, Iterator, Sequence

from cutlayer.observe.chain import digest_of
from cutlayer.observe.facts import Crossed, Moved, Scored, metrics
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Tell
from cutlayer.protocol.messages import Backward, Forward, State
from cutlayer.protocol.wire import part_bytes


class Telling:
    """Makes the facts of party `name` in run `run`, with each message's codec and defence; digests if `audited`."""

    def __init__(
        self,
        plan: Plan,
        name: str,
        *,
        run: Callable[[], str],
        codec: Callable[[Forward | Backward], str],
        defence: Callable[[Forward | Backward], str],
        audited: bool = False,
    ) -> None:
        self._name, self._conductor = name, plan.conductor
        self._run, self._codec, self._defence, self._audited = run, codec, defence, audited
        self._carries = {edge.name: plan.topology.source_kind(edge) for edge in plan.topology.edges}

    def crossed(
        self, peer: str, message: Forward | Backward, payload: Sequence[memoryview], nbytes: int, *, sent: bool
    ) -> Crossed:
        """A message with tensors crossed this party's border, in a frame of so many bytes."""
        return Crossed(
            party=self._name,
            peer=peer,
            edge=message.edge,
            way="forward" if isinstance(message, Forward) else "backward",
            sent=sent,
            purpose=message.ticket.purpose,
            rows=message.tensors[0].shape[0] if message.tensors and message.tensors[0].shape else 0,
            carries=self._carries.get(message.edge),
            shapes=message.tensors,
            payload_bytes=sum(part_bytes(message)),
            codec=self._codec(message),
            defence=self._defence(message) if sent else "none",
            frame_bytes=nbytes,
            run=self._run(),
            ticket=message.ticket,
            digest=self._digest(payload),
        )

    def moved(
        self, message: State, payload: Sequence[memoryview], nbytes: int, *, sent: bool, payload_bytes: int = 0
    ) -> Iterator[Moved]:
        """A state crossed this party's border. What others' states it forwards is theirs to tell."""
        if self._name in (message.source, message.target):
            yield Moved(
                party=self._name,
                source=message.source,
                target=message.target,
                what=message.kind,
                of="gradients" if message.normaliser else "weights",
                sent=sent,
                sealed=self._conductor not in (message.source, message.target),
                payload_bytes=payload_bytes,
                frame_bytes=nbytes,
                run=self._run(),
                number=message.number,
                digest=self._digest(payload),
            )

    def scored(self, told: Tell) -> Iterator[Scored]:
        """A turn's losses and scores, by owner of the rows."""
        for owner, sums in told.sums.items():
            yield Scored(
                party=self._name,
                owner=owner,
                turn=told.turn,
                round=told.round,
                purpose=told.purpose,
                metrics=metrics(sums),
            )

    def _digest(self, payload: Sequence[memoryview]) -> str:
        return digest_of(payload) if self._audited else ""
