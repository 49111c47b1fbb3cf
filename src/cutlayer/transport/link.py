"""A link between two processes. It outlives its connections: what was lost with one is sent again on the next.

Every frame has a number, and says how many of the other direction its sender has received. Where a connection breaks,
the link is *detached*: the end that dialled dials again, the other waits for it, and each is told what the other lacks.

No lock of a link is held over a transfer. A frame is written by its sender, if that waits, and else by the keeper's
thread.
"""

import threading
import time
from collections.abc import Callable

import msgspec

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.protocol.messages import SENTENCE, Control, Leave
from cutlayer.protocol.wire import Frame, encode
from cutlayer.transport.channel import PING
from cutlayer.transport.keeper import Keeper, Redial
from cutlayer.transport.lanes import Arrived, Lanes, ReceivingLane, SendingLane
from cutlayer.transport.outbox import Posted
from cutlayer.transport.sending import Sending

PART_S = 0.1
"""How long a peer may take to hear that this end leaves."""
LINGER_S = 2.0
"""How long a close waits for a link that is detached to stand again, so that the peer has all frames, and is told; and
how long for a peer that takes nothing of what was handed over."""
CLOSE_S = 2.0
HANDED_BYTES = 256 * 1024
"""From here on another thread writes a frame whose sender does not wait: to wake it takes up to 0.1 ms."""
ACKNOWLEDGED_AT = 4
"""Where nothing goes back, an acknowledgement leaves when one part in so many of what the peer may keep has come."""

_HEARTBEAT = Posted(PING, PING.nbytes)
_control = msgspec.msgpack.Decoder(Control)


class Link:
    """One end of a link over lanes. See `channel.Channel` for what it promises.

    `life` names the link at both ends. With `redial` it is the end that dials again. `on_trouble` is told, from a
    thread of the link's, when the link breaks and when it stands again.
    """

    def __init__(self, peer: str, life: bytes, lanes: Lanes, limits: Limits, redial: Redial | None = None) -> None:
        self.peer, self.life = peer, life
        self.on_trouble: Callable[[str], None] = lambda sentence: None
        self.sent_bytes = self.received_bytes = 0
        self.received = 0
        """How many frames have been received: the number of the last."""
        self._limits = limits
        self._reading = threading.Lock()
        self._lock = threading.Lock()  # guards what is sent, the lanes, and why it is over
        self._changed = threading.Condition(self._lock)
        self._sending = Sending(lanes.outgoing, limits, self._lock, self._changed)
        self._outbox = self._sending.outbox
        self._incoming: ReceivingLane | None = lanes.incoming
        self._over: ChannelError | None = None
        self._closing: ChannelClosed | None = None
        self._refused = ""
        self._told = self._owed_bytes = 0
        self._tell_frames = max(1, limits.queued_frames // ACKNOWLEDGED_AT)
        self._tell_bytes = max(1, limits.queued_bytes // ACKNOWLEDGED_AT)
        self._spent: list[SendingLane] = []
        self._keeper = Keeper(self, limits, redial)
        self._keeper.start()

    @property
    def open(self) -> bool:
        """Whether the link is not over: it stands, or may stand again."""
        return self._over is None

    @property
    def stands(self) -> bool:
        """Whether both connections do."""
        return self._sending.lane is not None and self._incoming is not None

    @property
    def moved(self) -> int:
        """A number that grows with every frame that arrived at either end."""
        return self.received + self._outbox.acknowledged

    @property
    def resent_bytes(self) -> int:
        """Bytes of frames that were written more than once; `sent_bytes` counts each frame once."""
        return self._outbox.resent_bytes

    # ------------------------------------------------------------------ a channel

    def send(self, frame: Frame, *, wait: bool = True, urgent: bool = False) -> int:
        """Hands the frame to the kernel or, with `wait=False`, to the link; it is kept while the link is detached.

        Raises `ChannelTimeout`, `ChannelClosed`; `ValueError` for a part that is not contiguous.
        """
        for part in frame.parts:
            if not part.c_contiguous:
                raise ValueError("a frame's parts must be contiguous: nothing of this one was sent")
        nbytes = frame.nbytes
        with self._lock:
            if self._over or self._closing or not self._outbox.has_room(nbytes, urgent=urgent):
                self._wait_for_room(nbytes, urgent=urgent)
            here = wait or (nbytes < HANDED_BYTES and self._sending.idle)
            posted = self._outbox.put(frame, nbytes, urgent=urgent)
            posted.awaited = wait
            self.sent_bytes += nbytes
        if here:
            try:
                self._flush(posted)
            finally:
                posted.awaited = False
        elif self._sending.lane is not None:  # or its keeper is busy with a new one
            self._keeper.stir()
        if self._over and not posted.number:
            raise _afresh(self._over)
        return nbytes

    def receive(self, limit_bytes: int) -> Frame:
        """The next frame. Raises `ChannelTimeout`, `ChannelClosed`, `FrameRefused`."""
        with self._reading:
            while True:
                if self._refused:
                    raise ChannelClosed(self._refused)
                lane = self._incoming or self._wait_for_lane()
                try:
                    frame = self._take(lane, lane.read(limit_bytes))
                except FrameRefused as error:
                    self._refused = str(error)
                    raise
                except (OSError, EOFError, ValueError) as error:
                    self._lose(lane, self._fault(lane, error))
                except BaseException:  # an interrupt, say: the rest of a frame would be taken for a new one
                    self._lose(lane, ChannelClosed(f"receiving from {self.peer} was interrupted"))
                    raise
                else:
                    if frame is not None:
                        return frame

    def close(self) -> None:
        """Ends the link at both ends, once all that was sent before has left, or as much as leaves. Idempotent."""
        reason = f"the link to {self.peer} was closed at this end"
        with self._lock:
            self._closing = ChannelClosed(reason)
            self._changed.notify_all()
            self._linger()
        self.end(reason)
        self._keeper.stop(CLOSE_S)

    def end(self, reason: str, told: str = "") -> None:
        """`close`, at once and with another sentence for whoever still waits here; the peer is `told` why."""
        with self._lock:
            outgoing, incoming = self._sending.lane, self._incoming
            self._sending.lane = self._incoming = None
            self._finish(ChannelClosed(reason))
        if outgoing is not None:
            outgoing.part(encode(Leave(told[:SENTENCE])), PART_S)
        if incoming is not None:
            incoming.close()

    # ------------------------------------------------------------------ new connections

    def forgo(self) -> None:
        """From now on nobody can take this link up again: if its connections break, it is over."""
        with self._lock:
            self._keeper.patience_s = 0.0
            if self._keeper.trouble is not None:
                self._finish(self._keeper.trouble)

    def fits(self, received: int) -> bool:
        """Whether a peer that has received so many frames can take this link up again."""
        with self._lock:
            return self._over is None and self._outbox.fits(received)

    def attach(self, lanes: Lanes, received: int) -> None:
        """Go on over new lanes with a peer that has received so many frames."""
        with self._lock:
            older = (self._sending.lane, self._incoming)
            self._sending.lane = self._incoming = None
            self._keeper.lost(ChannelClosed(f"{self.peer} is gone"))  # the peer may have noticed first
        for lane in older:  # also wakes whoever is stuck there, and nobody writes on the new one before that has ended
            if lane is not None:
                lane.close()
        with self._lock:
            if stands := self._over is None:
                again = self._outbox.go_back(received)
                self._sending.lane, self._incoming = lanes
                self._told = self._owed_bytes = 0
                self._keeper.stood(again)
                self._changed.notify_all()
        if not stands:
            lanes.close()

    def give_up(self, error: ChannelError) -> None:
        """The link is over; what has arrived already can still be received."""
        with self._lock:
            self._finish(error)

    def release(self) -> None:
        """Lets go of the connections of a link that is over."""
        while self._spent:
            self._spent.pop().close()
        if (incoming := self._incoming) is not None:
            incoming.wake()

    def _finish(self, error: ChannelError) -> None:
        self._over = self._over or error
        if self._sending.lane is not None:
            self._spent.append(self._sending.lane)
            self._sending.lane = None
        self._outbox.clear()
        self._changed.notify_all()
        self._keeper.stir()

    def _lose(self, lane: SendingLane | ReceivingLane, trouble: ChannelError) -> None:
        """A lane broke: the peer closes the other one, too, when it notices, and until then that one can be read."""
        with self._lock:
            lost: list[SendingLane | ReceivingLane] = []
            if lane is self._incoming:
                lost.append(lane)
                self._incoming = None
            if self._sending.lane is not None and (lost or lane is self._sending.lane):
                lost.append(self._sending.lane)
                self._sending.lane = None
            if lost and self._over is None:
                self._keeper.lost(trouble)
                if not self._keeper.patience_s:
                    self._finish(trouble)
        for each in lost:
            each.close()

    # ------------------------------------------------------------------ sending

    def tend(self) -> float:
        """Write what is due. Returns for how many seconds nothing else is."""
        try:
            self._flush()
            if (lane := self._sending.lane) is None:
                return 0.0
            left_s = lane.wrote_at + self._limits.heartbeat_s - time.monotonic()
            if left_s > 0 and not self._owes():
                return left_s
            self._write_next(None, spare=_HEARTBEAT)
        except ChannelError:  # whoever sends or receives next is told
            return 0.0
        except Exception as error:  # of memory, say: nobody else would hear of it
            self.give_up(ChannelClosed(f"sending to {self.peer} failed: {error!r}"))
            return 0.0
        return self._limits.heartbeat_s

    def _owes(self) -> bool:
        """Whether the peer is to be told by now what was received."""
        return self.received - self._told >= self._tell_frames or self._owed_bytes >= self._tell_bytes

    def _wait_for_room(self, nbytes: int, *, urgent: bool) -> None:
        timeout_s = self._limits.send_timeout_s
        longest_s = timeout_s + self._limits.reconnect_timeout_s
        known, began = self._sending.progress, time.monotonic()
        started = began
        while not (self._over or self._closing or self._outbox.has_room(nbytes, urgent=urgent)):
            now = time.monotonic()
            if self._sending.progress != known:
                known, began, started = self._sending.progress, now, now
            if self._sending.lane is None:
                began = now  # while it is detached, its keeper ends the waiting
            if (left_s := min(began + timeout_s, started + longest_s) - now) <= 0:
                self._finish(ChannelTimeout(self._stuck()))
                break
            self._sending.rest(left_s)
        if error := self._over or self._closing:
            raise _afresh(error)

    def _linger(self) -> None:
        """Waits for what was sent and has not left, not for a sender that waits itself: as long as anything moves."""
        began = time.monotonic()
        while not self._over:
            lane = self._sending.lane
            if self.stands and self._sending.settled:
                return
            moved_at = began if lane is None else max(began, lane.wrote_at)
            left_s = min(moved_at + LINGER_S, began + self._limits.send_timeout_s) - time.monotonic()
            if left_s <= 0:
                return
            self._sending.rest(left_s)

    def _flush(self, posted: Posted | None = None) -> None:
        """Write what waits, in its order, until `posted` is written, or all is. Raises `ChannelError`."""
        while (taken := self._write_next(posted)) is not None and taken is not posted:
            pass

    def _write_next(self, posted: Posted | None, spare: Posted | None = None) -> Posted | None:
        """Write the next frame, or `spare` where nothing waits. Returns which."""
        if (claimed := self._sending.claim(posted, spare)) is None:
            return None
        lane, taken = claimed
        try:
            self._write(lane, taken.frame, taken.number)
        finally:
            self._sending.release()
        return taken

    def _write(self, lane: SendingLane, frame: Frame, number: int) -> None:
        received = self.received
        try:
            lane.write(frame, number, received)
        except TimeoutError as error:
            self.give_up(ChannelTimeout(self._stuck()))
            raise ChannelTimeout(self._stuck()) from error
        except (OSError, ValueError) as error:
            self._lose(lane, ChannelClosed(f"{self.peer} is gone"))
            if self._over:
                raise _afresh(self._over) from error
        except BaseException:  # an interrupt, say: half a frame may have left
            self._lose(lane, ChannelClosed(f"sending to {self.peer} was interrupted in the middle of a frame"))
            raise
        self._told, self._owed_bytes = received, 0

    def _stuck(self) -> str:
        return f"{self.peer} took no whole frame for {self._limits.send_timeout_s:g} s"

    # ------------------------------------------------------------------ receiving

    def _wait_for_lane(self) -> ReceivingLane:
        with self._lock:
            self._changed.wait_for(lambda: self._over or self._incoming)
            if self._incoming is not None:
                return self._incoming
            assert self._over is not None
            raise _afresh(self._over)

    def _take(self, lane: ReceivingLane, arrived: Arrived) -> Frame | None:
        """The frame, if it is the next one."""
        frame, number, acknowledged = arrived
        if acknowledged > self._outbox.acknowledged:
            self._let_go(acknowledged)
        if number != self.received + 1:
            self._set_apart(lane, frame, number)
            return None
        self.received = number
        nbytes = frame.nbytes
        self._owed_bytes += nbytes
        if number - self._told >= self._tell_frames or self._owed_bytes >= self._tell_bytes:
            self._keeper.stir()
        if frame.header == PING.header and not frame.body_bytes:
            return None
        self.received_bytes += nbytes
        return frame

    def _let_go(self, acknowledged: int) -> None:
        with self._lock:
            if self._over is None:
                self._outbox.acknowledge(acknowledged)
                self._sending.rouse()

    def _set_apart(self, lane: ReceivingLane, frame: Frame, number: int) -> None:
        """A frame that concerns the connection only, or was received before, or comes too early."""
        if number > self.received:
            self._lose(lane, ChannelClosed(f"a frame of {self.peer} was lost on the way"))
        if number or frame.header == PING.header:
            return
        try:
            word = _control.decode(frame.header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameRefused(f"{self.peer} sent a frame without a number") from error
        if isinstance(word, Leave):
            why = f": {word.reason}" if word.reason else ""
            self.give_up(ChannelClosed(f"{self.peer} is gone{why}"))
            self._lose(lane, ChannelClosed(""))

    def _fault(self, lane: ReceivingLane, error: Exception) -> ChannelError:
        where = " in the middle of a frame" if lane.inside else ""
        if isinstance(error, TimeoutError):
            return ChannelTimeout(f"{self.peer} was silent for {self._limits.silence_timeout_s:g} s{where}")
        return ChannelClosed(f"{self.peer} is gone{where}")


def _afresh(error: ChannelError) -> ChannelError:
    """The same failure, to be raised in another thread."""
    return type(error)(str(error))
