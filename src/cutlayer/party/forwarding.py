"""What two parties without a link say to each other: frames sealed to the other, forwarded unread by the conductor."""

from collections import Counter
from collections.abc import Callable

import torch

from cutlayer.party.sealed import Seals
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol import wire
from cutlayer.protocol.messages import Control, Message, Sealed
from cutlayer.protocol.wire import Frame, Payload


class Forwarding:
    """The sealed frames of party `name`. `run`: the run's name. Without `seals` nothing can be sealed."""

    def __init__(self, plan: Plan, name: str, *, run: Callable[[], str], seals: Seals | None) -> None:
        self._plan, self._name, self._run, self._seals = plan, name, run, seals
        self._limits = {"header_limit": plan.terms.limits.header_bytes, "body_limit": 2**62}
        self._sent: Counter[str] = Counter()

    def wrap(self, target: str, message: Message | Control, payload: Payload) -> Frame:
        """A frame for the conductor, in which lies one for `target`. Raises `CredentialError`."""
        assert self._seals is not None, "a plan whose messages are forwarded is run with keys to seal them"
        inner = wire.encode(message, payload)
        number = self._sent[target]
        self._sent[target] += 1
        data = b"".join((inner.prelude(), inner.header, *inner.parts))
        sealed = self._seals.seal(target, data, context=self._context(self._name, target, number))
        shape = TensorShape("uint8", (len(sealed),))
        return wire.encode(Sealed(self._name, target, number, (shape,)), [memoryview(sealed)])

    def open(self, message: Sealed, view: memoryview) -> Frame:
        """The frame that was sealed for this party. Raises `CredentialError`, `FrameRefused`."""
        assert self._seals is not None
        context = self._context(message.source, self._name, message.number)
        data = memoryview(self._seals.open(message.source, view, context=context))
        header_bytes, body_bytes = wire.read_prelude(data[: wire.PRELUDE_BYTES], **self._limits)
        body_at = wire.PRELUDE_BYTES + header_bytes
        header = bytes(data[wire.PRELUDE_BYTES : body_at])
        body = data[body_at:]
        wire.check_length(body.nbytes, body_bytes)
        return Frame(header, (_aligned(body),) if body_bytes else ())

    def _context(self, source: str, target: str, number: int) -> bytes:
        """What a seal is good for: this message of this run of this plan, and nothing else."""
        return repr((self._plan.digest, self._run(), "frame", source, target, number)).encode()


def _aligned(body: memoryview) -> memoryview:
    """A copy in a buffer of its own, aligned as a received one is: the bits of a sum depend on it."""
    buffer = torch.empty(body.nbytes, dtype=torch.uint8)
    whole = memoryview(buffer.numpy().data)
    whole[:] = body
    return whole
