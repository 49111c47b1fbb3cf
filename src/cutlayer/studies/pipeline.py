"""How long a training step takes: two computers, a link between them, and micro-batches on their way. Pure arithmetic.

    client   F1 F2 F3 ·············· B1 B2 B3 step
    up          ====F1 F2 F3
    server            ·· S1 S2 S3 step
    down                    ====1 2 3

The parameters are frozen until all micro-batches of a step have come back, and then each side steps once. A resource (a
computer, a direction of the link) does one thing at a time, in order. Huang et al. 2019 (GPipe, arXiv 1811.06965) draw
the same picture of a pipeline that is flushed after each step.
"""

from dataclasses import dataclass

STEPS = 4
"""So many steps are played; the last one counts, as the first begins with an empty server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A link between client and server. Rates in bytes a second; `delay_s` is that of one way."""

    up_bytes_per_s: float
    down_bytes_per_s: float
    delay_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one micro-batch costs, and, last, a step: seconds of a computer, bytes on the link.

    Whatever the computer does beside the arithmetic (load, encode, decode, the session) is part of its seconds.
    """

    load_s: float
    """From the beginning until the labels leave."""
    forward_s: float
    """The client's, until the activation leaves."""
    server_s: float
    """Forward and backward, until the gradient leaves."""
    backward_s: float
    """The client's."""
    label_bytes: int
    """0 if labels do not cross."""
    up_bytes: int
    down_bytes: int
    client_step_s: float
    server_step_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """How a party sends.

    `early`: an activation leaves as soon as it is computed; otherwise after the forwards of all micro-batches.
    `buffer_bytes`: how many bytes a computer may leave to the link, and go on; None: any number.
    """

    early: bool = False
    buffer_bytes: int | None = None


@dataclass(slots=True)
class _Way:
    """One direction of the link."""

    bytes_per_s: float
    delay_s: float
    free_s: float = 0.0

    def send(self, at_s: float, nbytes: int, buffer_bytes: int | None) -> tuple[float, float]:
        """When the sender goes on, and when all of it has arrived."""
        self.free_s = max(at_s, self.free_s) + nbytes / self.bytes_per_s
        held_s = at_s if buffer_bytes is None else max(at_s, self.free_s - buffer_bytes / self.bytes_per_s)
        return held_s, self.free_s + self.delay_s


def step_seconds(work: Work, micro_batches: int, line: Line, sending: Sending = Sending()) -> float:
    """Seconds from the end of one step to the end of the next, at the client, when it goes on like this.

    With one micro-batch it is a sum: load, forward, its bytes, a delay, the server, its bytes, a delay, backward, step.
    """
    player = _Player(work, micro_batches, line, sending)
    ends = [player.step() for _ in range(STEPS)]
    return ends[-1] - ends[-2]


class _Player:
    """Plays one step after another. All times count from the beginning."""

    def __init__(self, work: Work, micro_batches: int, line: Line, sending: Sending) -> None:
        self._work, self._micros, self._sending = work, micro_batches, sending
        self._client_s = self._server_s = 0.0
        self._up = _Way(line.up_bytes_per_s, line.delay_s)
        self._down = _Way(line.down_bytes_per_s, line.delay_s)

    def step(self) -> float:
        """When the client's part of the next step ends."""
        work = self._work
        answers = [self._answer(arrived_s) for arrived_s in self._forwards()]
        self._server_s += work.server_step_s
        for arrived_s in answers:
            self._client_s = max(self._client_s, arrived_s) + work.backward_s
        self._client_s += work.client_step_s
        return self._client_s

    def _forwards(self) -> list[float]:
        """When each activation, and its labels before it, has arrived at the server."""
        arrived = []
        for _ in range(self._micros):
            self._client_s += self._work.load_s
            self._send(self._work.label_bytes)
            self._client_s += self._work.forward_s
            if self._sending.early:
                arrived.append(self._send(self._work.up_bytes))
        if not self._sending.early:
            arrived = [self._send(self._work.up_bytes) for _ in range(self._micros)]
        return arrived

    def _send(self, nbytes: int) -> float:
        self._client_s, arrived_s = self._up.send(self._client_s, nbytes, self._sending.buffer_bytes)
        return arrived_s

    def _answer(self, arrived_s: float) -> float:
        """When the gradient has arrived at the client."""
        self._server_s = max(self._server_s, arrived_s) + self._work.server_s
        self._server_s, back_s = self._down.send(self._server_s, self._work.down_bytes, self._sending.buffer_bytes)
        return back_s
