"""Claims about waiting and losing: no wait is without a limit, and the sentence names who is waited for."""

import math

import pytest

from cutlayer.errors import ChannelClosed, ChannelTimeout, DataError, Diverged, PeerStopped, RunError
from cutlayer.plan.limits import Limits
from cutlayer.protocol.events import Broke, Connected, Done, Fail, Finish, Lost, Ran, Run, Send, Tick
from cutlayer.protocol.messages import Bye, Forward, Rows
from protocol.joined import Wire
from protocol.plans import LAB, A, B, C, make_plan

LIMITS = Limits(join_timeout_s=300, progress_timeout_s=900, turn_timeout_s=86_400)
ROWS = {A: Rows(80, 3), B: Rows(5, 2)}


def wire(*, connected: tuple[str, ...] = (A, B), seed: int | None = None) -> Wire:
    wire = Wire(make_plan(limits=LIMITS), ROWS, seed=seed)
    for name in connected:
        wire.connect(name)
    return wire


def patience(wire: Wire, party: str, limit_s: float) -> str:
    """The sentence with which a party gives up: not at the limit, but beyond it."""
    assert wire.sessions[party].feed(Tick(limit_s)) == []
    last = wire.sessions[party].feed(Tick(limit_s + 1))[-1]
    assert isinstance(last, Fail)
    assert isinstance(last.error, ChannelTimeout)
    return str(last.error)


def stuck_in_turn() -> Wire:
    """`hospital-a` has had a gradient and sent its next activation; `hospital-b`, granted ahead, has sent its first."""
    return wire(seed=0).run(until=lambda wire: _steps(wire, A) >= 1 and _steps(wire, B) == 0)


def _steps(wire: Wire, party: str) -> int:
    """The last step on its own rows of which a client has sent an activation; -1 before the first."""
    return max((s.message.ticket.step for s in wire.sent(party) if isinstance(s.message, Forward)), default=-1)


def test_the_lab_waits_so_long_for_clients_to_join() -> None:
    assert patience(wire(), LAB, 300) == f"waited 301 s for {A}, {B} to join"
    assert patience(wire(connected=(B,)).run(), LAB, 300) == f"waited 301 s for {A} to join"


def test_a_client_waits_so_long_for_the_others_to_join() -> None:
    assert patience(wire(connected=(A,)).run(), A, 300) == f"waited 301 s for {LAB} to begin"


def test_a_client_whose_turn_is_under_way_waits_for_progress() -> None:
    assert patience(stuck_in_turn(), A, 900) == f"waited 901 s for {LAB} to answer"


def test_a_client_whose_turn_was_granted_ahead_waits_as_long_as_others_turns_may_take() -> None:
    stuck = stuck_in_turn()
    assert patience(stuck, B, 86_400) == f"waited 86401 s for {LAB} to answer"


def test_a_client_between_its_turns_waits_as_long_as_others_turns_may_take() -> None:
    idle = Wire(make_plan(limits=Limits(turns_ahead=1)), ROWS).start()
    idle.run(until=lambda wire: bool(wire.tells(A)) and not wire.sessions[A]._works.traffic.turns)
    assert patience(idle, A, 86_400) == f"waited 86401 s for {LAB} to grant a turn"


def test_the_lab_waits_for_progress_and_names_who_owes_it() -> None:
    assert patience(stuck_in_turn(), LAB, 900) == f"waited 901 s for {A} to answer"


def test_the_lab_names_those_who_have_not_said_goodbye() -> None:
    leaving = wire().run(until=lambda wire: wire.sessions[LAB].states.get(A) == "gone")
    assert patience(leaving, LAB, 900) == f"waited 901 s for {B} to leave"


def test_time_means_nothing_after_the_end() -> None:
    ended = wire().run()
    assert all(session.feed(Tick(math.inf)) == [] for session in ended.sessions.values())


@pytest.mark.parametrize("phase", ["connected", "joined", "running", "in its turn"])
def test_a_client_that_loses_the_lab_fails(phase: str) -> None:
    lost = wire(connected=(A,) if phase == "joined" else (A, B))
    if phase == "connected":
        lost.feed(A, Connected(LAB))
    elif phase == "in its turn":
        lost = stuck_in_turn()
    elif phase == "running":
        lost.run(until=lambda wire: wire.sessions[A].states.get(LAB) == "running")
    else:
        lost.run()
    (fail,) = lost.feed(A, Lost(LAB, "it is gone"))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ChannelClosed)
    assert str(fail.error) == f"{LAB} is lost: it is gone"


def test_the_lab_fails_when_it_loses_a_client_in_the_run_and_tells_the_others() -> None:
    *goodbyes, fail = stuck_in_turn().feed(LAB, Lost(B, "it is gone"))
    assert goodbyes == [Send(A, Bye(f"{B} is lost: it is gone"))]
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ChannelClosed)


def test_the_lab_is_content_when_a_client_is_lost_after_the_last_turn() -> None:
    leaving = wire().run(until=lambda wire: any(isinstance(send.message, Bye) for send in wire.sent(LAB)))
    assert leaving.feed(LAB, Lost(A, "gone")) == []
    assert [type(action) for action in leaving.feed(LAB, Lost(B, "gone"))] == [Finish, Done]


@pytest.mark.parametrize("seed", range(20))
def test_when_one_party_gives_up_all_others_hear_of_it(seed: int) -> None:
    given_up = wire(seed=seed).run(until=lambda wire: wire.events > 20 + 4 * seed)
    party = (A, B, LAB)[seed % 3]
    given_up.feed(party, Broke(RunError("no space left on the disk")))
    given_up.run()
    endings = given_up.endings()
    assert set(endings) == {A, B, LAB}
    for name, ending in endings.items():
        assert isinstance(ending, Fail)
        assert "no space left on the disk" in str(ending.error)
        assert isinstance(ending.error, PeerStopped) == (name != party)


def test_what_is_wrong_with_a_partys_rows_stays_with_it() -> None:
    *goodbyes, fail = stuck_in_turn().feed(A, Broke(DataError("row 17, diagnosis: 'Meier' is no number")))
    assert isinstance(fail, Fail)
    assert "Meier" in str(fail.error)
    for send in goodbyes:
        assert isinstance(send, Send)
        assert isinstance(send.message, Bye)
        assert "Meier" not in send.message.reason
        assert send.message.reason


def test_a_party_that_breaks_before_the_run_is_sent_away_and_may_come_again() -> None:
    broken = wire(connected=(A,)).run()
    broken.feed(A, Broke(RunError("stopped by hand")))
    broken.run()
    assert not broken.sessions[LAB].over
    broken.sessions[A] = type(broken.sessions[A])(broken.plan, A, ROWS[A])
    broken.trace.clear()
    for name in (A, B):
        broken.connect(name)
    broken.run()
    assert {type(ending) for ending in broken.endings().values()} == {Done}


@pytest.mark.parametrize(
    "sums",
    [
        {"loss": math.nan, "normaliser": 4.0},
        {"loss": math.inf, "normaliser": 4.0},
        {"loss": 1.0, "normaliser": 0.0},
        {"loss": 1.0, "normaliser": math.nan},
        {"loss": 1.0, "normaliser": math.inf},
    ],
)
def test_a_loss_that_is_no_number_is_our_own_fault_not_the_peers(sums: dict[str, float]) -> None:
    at_loss = wire()
    at_loss._prompt = False
    at_loss.run(until=lambda wire: any(isinstance(action, Run) for action in wire.actions(LAB)))
    (ran,) = at_loss.results[LAB]
    assert isinstance(ran, Ran)
    last = at_loss.sessions[LAB].feed(Ran(ran.ticket, ran.node, ran.direction, ran.result, {A: sums}))[-1]
    assert isinstance(last, Fail)
    assert isinstance(last.error, Diverged)


def test_the_oldest_turn_names_who_is_waited_for() -> None:
    many = Wire(make_plan(clients=3), ROWS | {C: Rows(9)}).start()
    many.run(until=lambda wire: any(isinstance(a, Run) for a in wire.actions(LAB)))
    assert many.sessions[LAB].waiting_for() == f"{A} to answer"
