"""The thread that keeps a link: heartbeats and acknowledgements while it stands, and a new start when it broke."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout, CredentialError
from cutlayer.plan.limits import Limits
from cutlayer.transport.lanes import Lanes

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
SHORTEST_TRY_S = 0.1
STEADY_S = 1.0
"""A link that broke before it stood so long, and moved nothing, has never stood: so its time runs on."""

_dice = random.SystemRandom()


class FinalError(ChannelError):
    """The other end knows nothing of this link, or wants nothing of it: no other try helps."""


class Redial(Protocol):
    """How the end that dialled gets new connections."""

    def again(self, received: int, timeout_s: float) -> tuple[Lanes, int]:
        """One attempt: the lanes, and how many frames the peer has received.

        Raises `FinalError`; `ChannelError` and `CredentialError` if another attempt may succeed.
        """

    def stop(self) -> None:
        """Ends an attempt that is being made, and all later ones."""


class Kept(Protocol):
    """What a keeper needs of its link."""

    peer: str
    received: int
    on_trouble: Callable[[str], None]

    @property
    def open(self) -> bool:
        """Whether it is not over."""

    @property
    def stands(self) -> bool:
        """Whether both its connections do."""

    @property
    def moved(self) -> int:
        """A number that grows with every frame that arrived at either end."""

    def tend(self) -> float:
        """Write what is due. Returns for how many seconds nothing else is."""

    def attach(self, lanes: Lanes, received: int) -> None:
        """Go on over these."""

    def give_up(self, error: ChannelError) -> None:
        """It is over."""

    def release(self) -> None:
        """Let go of the connections of a link that is over."""


def pauses() -> Iterator[float]:
    """How long to wait after each failed attempt, in seconds."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * _dice.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class Keeper:
    """Keeps `link` until it is over. Without `redial` a broken link waits until somebody attaches new lanes to it."""

    def __init__(self, link: Kept, limits: Limits, redial: Redial | None) -> None:
        self.patience_s = limits.reconnect_timeout_s
        self.trouble: ChannelError | None = None
        """What broke the link, while it is detached."""
        self._link, self._redial = link, redial
        self._stood_at = self._lost_at = time.monotonic()
        self._moved = 0
        self._pauses = pauses()
        self._news: deque[str] = deque()
        self._stirred = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name=f"cutlayer-link-{link.peer}")

    def start(self) -> None:
        """The link is ready to be kept."""
        self._thread.start()

    def stir(self) -> None:
        """Something may be due."""
        self._stirred.set()

    def stop(self, timeout_s: float) -> None:
        """Waits for the end of the thread, once the link is over."""
        if self._redial is not None:
            self._redial.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def lost(self, trouble: ChannelError) -> None:
        """A connection broke."""
        if self.trouble is None:
            now = time.monotonic()
            if now - self._stood_at > STEADY_S or self._link.moved > self._moved:
                self._lost_at, self._pauses = now, pauses()
            self.trouble = trouble
            doing = "waiting for it to dial again" if self._redial is None else "dialling again"
            self._news.append(f"the link to {self._link.peer} broke ({trouble}): {doing}")
        self.stir()

    def stood(self, again: int) -> None:
        """The link stands again; so many frames are sent `again`."""
        self.trouble = None
        self._stood_at, self._moved = time.monotonic(), self._link.moved
        frames = "1 frame" if again == 1 else f"{again:,} frames"
        waited_s = self._stood_at - self._lost_at
        self._news.append(f"the link to {self._link.peer} stands again after {waited_s:.1f} s, {frames} sent again")
        self.stir()

    def _keep(self) -> None:
        while self._link.open:
            self._tell()
            if self._link.stands:
                self._wait(self._link.tend())
            elif self.trouble is not None:
                self._mend(self.trouble)
        self._link.release()

    def _tell(self) -> None:
        while self._news:
            with suppress(Exception):  # whatever a listener to this does, the link goes on
                self._link.on_trouble(self._news.popleft())

    def _wait(self, timeout_s: float) -> None:
        self._stirred.wait(max(0.0, timeout_s))
        self._stirred.clear()

    def _mend(self, trouble: ChannelError) -> None:
        reason = ""
        while self._link.open and not self._link.stands:
            left_s = self._lost_at + self.patience_s - time.monotonic()
            if left_s <= 0:
                self._link.give_up(self._too_late(trouble, reason))
            elif self._redial is None:
                self._wait(left_s)
            elif reason := self._dial(self._redial, left_s):
                self._wait(min(next(self._pauses), max(left_s / 2, SHORTEST_TRY_S)))

    def _dial(self, redial: Redial, left_s: float) -> str:
        """Why it failed, or ""."""
        try:
            self._link.attach(*redial.again(self._link.received, max(left_s, SHORTEST_TRY_S)))
        except FinalError as error:
            self._link.give_up(ChannelClosed(str(error)))
        except (ChannelError, CredentialError) as error:
            return str(error)
        return ""

    def _too_late(self, trouble: ChannelError, reason: str) -> ChannelError:
        kind = ChannelTimeout if isinstance(trouble, ChannelTimeout) else ChannelClosed
        last = f"; the last attempt ended with: {reason}" if reason else ""
        return kind(f"{trouble}, and the link did not stand again within {self.patience_s:g} s{last}")
