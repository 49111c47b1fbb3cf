"""Faults applied to the process they strike, by wrapping what it calls: the product has no hooks for them."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cutlayer.party.checkpoint import Checkpoints
from cutlayer.party.openings import Openings
from cutlayer.party.party import Party
from cutlayer.party.place import Folder
from cutlayer.party.saver import Saver
from cutlayer.protocol.events import Action, Run, Send, Step
from cutlayer.protocol.messages import Hello
from cutlayer.protocol.wire import Frame
from cutlayer.transport.lanes import SendingLane
from faults.faults import FRAME, Fault

HELD_S = 0.3
"""How long a frame waits for the next one, which is to leave before it."""
RENAMED = {"save-": "write", "note-finished": "finish"}
Write = Callable[[SendingLane, Frame, int, int], None]


class Strikes:
    """The faults of this process. `tell` is called when one is about to strike; nothing else is told meanwhile."""

    def __init__(self, faults: Sequence[Fault], tell: Callable[[Fault], None], lock: threading.Lock) -> None:
        self._due = {(fault.at, fault.number): fault for fault in faults}
        self.done: Counter[str] = Counter()
        """How many acts there were, by kind."""
        self._tell, self._telling, self._counting = tell, lock, threading.Lock()

    def due(self, at: str) -> Fault | None:
        """One more act of this kind: the fault that strikes at it, if there is one."""
        with self._counting:
            self.done[at] += 1
            return self._due.pop((at, self.done[at]), None)

    def tell(self, fault: Fault) -> None:
        with self._telling:
            self._tell(fault)

    def strike(self, at: str) -> None:
        """Kill or stop this process, if that is due at this act."""
        if fault := self.due(at):
            with self._telling:
                self._tell(fault)
                os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)


def apply(strikes: Strikes) -> None:
    """From now on faults strike in this process."""
    _before(Party, "_perform", lambda _, action: _act(action), strikes)
    _before(Saver, "store", lambda *_: "copy", strikes)
    _before(Saver, "restore", lambda *_: "restore", strikes)
    _before(Folder, "rename", lambda _, __, name: _renamed(name), strikes)
    _after(Checkpoints, "write", "written", strikes)
    _after(Checkpoints, "mark", "committed", strikes)
    _before(Folder, "remove", lambda *_: "remove", strikes)
    _after(Saver, "finish", "finished", strikes)
    _after(Openings, "bind", "opened", strikes)
    _on_frames(strikes)


def _act(action: Action) -> str:
    match action:
        case Run():
            return action.direction
        case Step():
            return "step"
        case Send(message=Hello()):
            return "hello"
        case _:
            return ""


def _renamed(name: str) -> str:
    """The act in which a finished draft becomes this file."""
    if name.endswith(".committed"):
        return "commit"
    return next((act for start, act in RENAMED.items() if name.startswith(start)), "")


def _before(owner: type, method: str, act: Callable[..., str], strikes: Strikes) -> None:
    wrapped = getattr(owner, method)

    def call(*args: Any, **named: Any) -> Any:
        if at := act(*args):
            strikes.strike(at)
        return wrapped(*args, **named)

    setattr(owner, method, call)


def _after(owner: type, method: str, at: str, strikes: Strikes) -> None:
    wrapped = getattr(owner, method)

    def call(*args: Any, **named: Any) -> Any:
        result = wrapped(*args, **named)
        strikes.strike(at)
        return result

    setattr(owner, method, call)


# ---------------------------------------------------------------------- frames


def _on_frames(strikes: Strikes) -> None:
    write = SendingLane.write
    held = _Held(write)
    ways: dict[str, Callable[[Fault, SendingLane, Frame, int, int], None]] = {
        "drop": lambda _, *of: _encrypted(write, *of, alter=lambda *_: None),
        "corrupt": lambda _, *of: _encrypted(write, *of, alter=_with_one_byte_wrong),
        "truncate": lambda _, *of: _encrypted(write, *of, alter=_half),
        "delay": lambda fault, *of: _later(fault, write, *of),
        "duplicate": lambda _, *of: _twice(write, *of),
        "reorder": lambda _, *of: held.hold(*of),
    }

    def altered(lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
        fault = strikes.due(FRAME) if number else None
        if fault is None:
            write(lane, frame, number, acknowledged)
        else:
            strikes.tell(fault)
            ways[fault.kind](fault, lane, frame, number, acknowledged)
        if fault is None or fault.kind != "reorder":
            held.let_go(lane)

    SendingLane.write = altered  # type: ignore[method-assign,assignment]


def _twice(write: Write, lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
    write(lane, frame, number, acknowledged)
    write(lane, frame, number, acknowledged)


def _later(fault: Fault, write: Write, lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
    time.sleep(fault.seconds)
    write(lane, frame, number, acknowledged)


class _Held:
    """The frame that leaves after the next one of its lane."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._of: tuple[SendingLane, Frame, int, int] | None = None
        self._lock = threading.Lock()

    def hold(self, lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
        with self._lock:
            self._of = lane, frame, number, acknowledged
        timer = threading.Timer(HELD_S, self.let_go, (lane,))
        timer.daemon = True
        timer.start()

    def let_go(self, lane: SendingLane) -> None:
        with self._lock:
            of, self._of = (self._of, None) if self._of and self._of[0] is lane else (None, self._of)
        if of is not None:
            try:
                self._write(*of)
            except (OSError, ValueError):
                return  # the connection is gone meanwhile


def _encrypted(
    write: Write,
    lane: SendingLane,
    frame: Frame,
    number: int,
    acknowledged: int,
    *,
    alter: Callable[[socket.socket, bytearray], None],
) -> None:
    """Write a frame into other hands than the peer's, which then send it on, altered."""
    connection = lane._connection
    with _intercepted(connection) as taken:
        write(lane, frame, number, acknowledged)
    alter(connection, taken)


@contextmanager
def _intercepted(connection: socket.socket) -> Iterator[bytearray]:
    """What TLS writes meanwhile, encrypted, in place of its leaving."""
    near, far = socket.socketpair()
    taken = bytearray()
    with near, far:
        for each in (near, far):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
            each.setblocking(False)
        kept = os.dup(connection.fileno())
        os.dup2(near.fileno(), connection.fileno(), inheritable=False)
        try:
            yield taken
        finally:
            os.dup2(kept, connection.fileno(), inheritable=False)
            os.close(kept)
            near.shutdown(socket.SHUT_WR)
            while piece := far.recv(2**20):
                taken += piece


def _with_one_byte_wrong(connection: socket.socket, taken: bytearray) -> None:
    taken[len(taken) // 2] ^= 0x10
    _send(connection, taken)


def _half(connection: socket.socket, taken: bytearray) -> None:
    _send(connection, taken[: len(taken) // 2])
    socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _send(connection: socket.socket, data: bytearray) -> None:
    """Below TLS."""
    view = memoryview(data)
    while view:
        try:
            view = view[socket.socket.send(connection, view) :]
        except BlockingIOError:
            time.sleep(0.01)
