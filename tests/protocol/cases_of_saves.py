"""Messages about saves and members that break a rule, each in a scene."""

from typing import Any

from cutlayer.plan.membership import ALL, Membership
from cutlayer.protocol.events import Commit, Store
from cutlayer.protocol.messages import Saved, Welcome
from protocol.joined import Wire
from protocol.lasting import lasting, saving
from protocol.plans import LAB, A, B
from protocol.scenarios import Scenario
from protocol.scenes import MEMBERS, ROWS, Scene, at_client, at_lab, begun, joined

SCENARIO = saving(Scenario("vanilla", (ROWS[A], ROWS[B]), micro_batches=2), 2)
"""0 a trains, and save 0; 1 b trains, 2 both evaluate, and save 2."""
FIRST, LAST = 0, 2


def saving_until(condition: Any) -> Scene:
    def scene() -> Wire:
        wire = lasting(SCENARIO)
        wire.run(until=condition)
        assert condition(wire)
        return wire

    return scene


def at(party: str, kind: type[Store | Commit]) -> Scene:
    """The party has just come so far with the first save; nobody has written anything more."""
    return saving_until(lambda wire: any(isinstance(action, kind) for action in wire.actions(party)))


def half_way() -> Wire:
    """The lab has written its part and knows that `hospital-a` has; `hospital-b` is still writing."""
    wire = lasting(SCENARIO)
    wire.run(until=lambda wire: all(Store in map(type, wire.actions(name)) for name in wire.sessions))
    for party in (A, LAB):
        wire.feed(party, wire.writing[party].popleft())
    while wire.links[A, LAB]:
        wire.feed(LAB, wire.links[A, LAB].popleft())
    assert not any(isinstance(action, Commit) for action in wire.actions(LAB))
    return wire


def welcome(log: tuple[Membership, ...] = ALL, save: int = -1) -> Welcome:
    return Welcome("", MEMBERS, log, save)


CASES_OF_SAVES = {
    "a part of a save that holds": at_lab("wrong-save", Saved(FIRST), at(LAB, Commit)),
    "a part of a save twice": at_lab("wrong-save", Saved(FIRST), half_way),
    "a part of a later save before the one that is due holds": at_lab("wrong-save", Saved(LAST), half_way),
    "a part of a later save than the one that is due": at_lab("wrong-save", Saved(LAST), half_way, B),
    "a part of what is no save": at_lab("wrong-save", Saved(1), half_way, B),
    "a save that holds before anything was saved": at_client("wrong-save", Saved(FIRST), begun(A)),
    "a save that holds though my part is not written": at_client("wrong-save", Saved(FIRST), at(A, Store)),
    "another save that holds": at_client("wrong-save", Saved(LAST), half_way),
    "a save that holds twice": at_client("wrong-save", Saved(FIRST), at(A, Commit)),
    "a log of nobody": at_client("wrong-members", welcome(()), joined),
    "a log out of order": at_client("wrong-members", welcome((Membership(after=4), Membership())), joined),
    "a log with two at once": at_client("wrong-members", welcome((*ALL, *ALL)), joined),
    "a log that says a member is absent": at_client("wrong-members", welcome((Membership(absent=(B,)),)), joined),
    "a save that is not mine": at_client("wrong-members", welcome(save=7), joined),
    "a save of before I was absent that is not mine": at_client(
        "wrong-members",
        welcome((Membership(), Membership(after=3, absent=(A,)), Membership(after=7, returned=(A,))), 7),
        joined,
    ),
}
