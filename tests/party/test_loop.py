"""A party's loop: how much of a peer's it holds, and that who comes and goes in the lobby holds up nobody."""

import threading
import time
from dataclasses import replace

import pytest

from cutlayer.errors import ChannelTimeout
from cutlayer.party.loop import Loop
from cutlayer.party.party import Party
from cutlayer.party.replicas import Replicas
from cutlayer.party.room import Room
from cutlayer.plan.limits import Limits
from cutlayer.transport.channel import Channel
from cutlayer.transport.memory import pair
from party.test_party import SECRETS, mlp, run

LIMITS = Limits(join_timeout_s=1.0)


class Revolving:
    """A listener at which one party comes and goes, every 50 ms."""

    def __init__(self) -> None:
        self.came = 0
        self.closed = threading.Event()

    def accept(self, timeout_s: float) -> Channel:
        if self.closed.wait(0.05):
            raise ChannelTimeout("closed")
        self.came += 1
        mine, theirs = pair("a", "server", LIMITS)
        threading.Timer(0.04, mine.close).start()
        return theirs

    def close(self) -> None:
        self.closed.set()


def test_who_comes_and_goes_in_the_lobby_does_not_keep_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.party.loop.TICK_S", 0.05)
    agreement = run(mlp()).agreement
    plan = replace(agreement.plan, terms=replace(agreement.plan.terms, limits=LIMITS))
    party = Party(plan, "server", replicas=Replicas(plan, agreement.parts_of), secret=SECRETS["server"])
    loop, door = Loop(plan, "server"), Revolving()
    loop.listen(door)  # type: ignore[arg-type]
    start = time.monotonic()
    try:
        with pytest.raises(ChannelTimeout, match="to join"):
            loop.run(party)
    finally:
        loop.close()
    assert time.monotonic() - start < 10
    assert door.came > 5


@pytest.mark.parametrize(("sizes", "fits"), [([], True), ([10], True), ([10, 10], False), ([99], True), ([100], False)])
def test_a_link_has_room_for_so_many_frames_and_bytes_and_one_frame_always(sizes: list[int], *, fits: bool) -> None:
    room = Room(frames=2, nbytes=100)
    for size in sizes:
        room.enter(size)
    assert room.wait(0.0) is fits
    for size in sizes:
        room.leave(size)
    assert room.wait(0.0)


def test_who_waits_for_room_goes_on_when_a_frame_leaves() -> None:
    room = Room(frames=5, nbytes=100)
    room.enter(1000)
    waits = threading.Thread(target=room.wait, args=(20.0,))
    waits.start()
    room.leave(1000)
    start = time.monotonic()
    waits.join(20)
    assert time.monotonic() - start < 5
