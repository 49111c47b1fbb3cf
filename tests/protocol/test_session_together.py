"""Claims about parties that have columns of the same rows, or talk by the conductor, and about predictions."""

from collections import Counter

import pytest

from cutlayer.errors import Misaligned, PeerStopped, RemoteProtocolError, RunError
from cutlayer.plan.schedule import Train
from cutlayer.plan.topology import Topology
from cutlayer.protocol.events import Action, Event, Fail, Open, Ran, Received, Run, Send, Step, Take
from cutlayer.protocol.messages import Backward, Bye, Forward, Refuse, Rows, State, Ticket, Welcome
from protocol.cases_of_topologies import ALL, BROUGHT, COMING, HOPPING, VERTICAL, first_ticket, next_is, of_all, sealed
from protocol.claims import assert_all_done, assert_nothing_is_kept, sent
from protocol.joined import Wire, mark_of
from protocol.plans import BUREAU, HOPS, HUB, LAB, LAB_2, A, B, C, make_plan, turns_of
from protocol.scenarios import NEWER, Scenario
from protocol.scenes import Untouchable


def fails_with(actions: list[Action]) -> BaseException:
    last = actions[-1]
    assert isinstance(last, Fail)
    return last.error


# ---------------------------------------------------------------------- by the conductor


def test_the_conductor_passes_on_unread_what_one_fellow_says_to_another() -> None:
    payload = Untouchable()
    message = sealed(A, HOPS[0])
    (send,) = HOPPING().sessions[LAB].feed(Received(A, message, payload))
    assert isinstance(send, Send)
    assert (send.peer, send.message) == (HOPS[0], message)
    assert send.payload is payload


def test_a_fellow_opens_what_was_sealed_for_it_and_hears_it_as_if_by_a_link_of_its_own() -> None:
    payload = Untouchable()
    (action,) = COMING().sessions[HOPS[0]].feed(Received(LAB, sealed(A, HOPS[0]), payload))
    assert isinstance(action, Open)
    assert action.message == sealed(A, HOPS[0])
    assert action.payload is payload


def test_the_lab_hears_no_activation_that_is_not_its_own() -> None:
    wire = Wire(make_plan("multi_hop"), BROUGHT).start().run()
    assert_all_done(wire)
    ends = {
        (send.message.edge, name)
        for name in (A, B, *HOPS)
        for send in wire.sent(name, LAB)
        if isinstance(send.message, Forward)
    }
    assert ends == {("hop_2->top", HOPS[1]), ("y->top", A), ("y->top", B)}
    assert not any(isinstance(a, Run) and a.node != "top" for a in wire.actions(LAB))


def test_a_fellow_that_breaks_a_rule_ends_the_run_and_all_hear_of_it_by_the_lab() -> None:
    wire = COMING()
    wrong = Forward(Ticket(0, A, 7, 0, "train"), "bottom->hop_1", ())
    goodbye, fail = wire.feed(HOPS[0], Received(A, wrong, Untouchable()))
    assert isinstance(goodbye, Send)
    assert isinstance(goodbye.message, Bye)
    assert goodbye.peer == LAB
    assert A in goodbye.message.reason
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, RemoteProtocolError)
    assert (fail.error.rule, fail.error.peer) == ("unexpected-ticket", A)
    wire.run()
    endings = wire.endings()
    assert set(endings) == {A, B, LAB, *HOPS}
    assert all(isinstance(ending, Fail) for ending in endings.values())


def test_what_a_fellow_says_without_a_seal_is_nobodys_edge() -> None:
    """The lab itself cannot speak for a client, nor a client tell the lab what is for another."""
    to_hop = Forward(Ticket(0, A, 0, 0, "train"), "bottom->hop_1", ())
    assert _refused(COMING(), HOPS[0], LAB, to_hop) == "not-your-edge"
    assert _refused(HOPPING(), LAB, A, to_hop) == "not-my-edge"


def _refused(wire: Wire, hearer: str, peer: str, message: Forward) -> str:
    first = wire.sessions[hearer].feed(Received(peer, message, Untouchable()))[0]
    assert isinstance(first, Send)
    assert isinstance(first.message, Refuse)
    return first.message.rule


# ---------------------------------------------------------------------- the same rows


EDGES = {"bottom_hospital_a->top": (A, 6), "bottom_hospital_b->top": (B, 6), "y->top": (BUREAU, 2)}
STRANGE = mark_of(first_ticket(), "other rows")


@pytest.mark.parametrize("odd", EDGES)
def test_marks_that_differ_end_the_run_before_anything_is_computed(odd: str) -> None:
    """Whichever of the parties it is that means other rows, and whichever of them come first."""
    for turned in (False, True):
        wire = next_is(Forward, A, LAB)()
        session = wire.sessions[LAB]
        edges = sorted(EDGES, reverse=turned)
        for edge in edges:
            party, width = EDGES[edge]
            message = of_all(edge, STRANGE if edge == odd else None, width=width)
            actions = session.feed(Received(party, message, Untouchable()))
            assert not any(isinstance(action, Run) for action in actions)
            if session.over:
                break
        error = fails_with(actions)
        assert isinstance(error, Misaligned)
        assert EDGES[odd][0] in error.parties
        assert set(error.marks) == {STRANGE, mark_of(first_ticket())}
        assert session.over
        told = [a for a in actions if isinstance(a, Send) and isinstance(a.message, Bye) and a.message.reason]
        assert {a.peer for a in told} == {A, B, BUREAU}


def test_a_party_with_columns_of_its_own_compares_them_with_what_comes() -> None:
    """The head's party has the labels; the middle brings the mark of all bottoms."""
    wire = next_is(Forward, LAB, BUREAU, "vertical_u_shaped")()
    message = of_all("middle->head", STRANGE)
    error = fails_with(wire.sessions[BUREAU].feed(Received(LAB, message, Untouchable())))
    assert isinstance(error, Misaligned)
    assert set(error.parties) == {BUREAU, LAB}


class Shifted(Wire):
    """Everybody's words are right, but one party means other rows."""

    odd = A

    def feed(self, party: str, event: object) -> list[Action]:
        if isinstance(event, Ran) and event.mark and party == self.odd:
            event = Ran(event.ticket, event.node, event.direction, event.result, event.sums, STRANGE)
        return super().feed(party, event)  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", ["vertical", "vertical_u_shaped", "extended_vanilla", "multi_task", "own"])
@pytest.mark.parametrize("odd", [A, B])
def test_nobody_steps_where_one_party_means_other_rows_whatever_the_order_of_delivery(topology: str, odd: str) -> None:
    for seed in range(12):
        wire = Shifted(make_plan(topology, micro_batches=2), BROUGHT, seed=seed, prompt=False)
        wire.odd = odd
        wire.start().run()
        endings = wire.endings()
        assert set(endings) == set(wire.sessions)
        assert all(isinstance(ending, Fail) for ending in endings.values())
        errors = [ending.error for ending in endings.values() if isinstance(ending, Fail)]
        assert any(isinstance(error, Misaligned) for error in errors)
        assert all(isinstance(error, Misaligned | PeerStopped) for error in errors)
        assert not any(isinstance(traced.action, Step) for traced in wire.trace)


def test_the_key_of_the_order_passes_the_lab_unread() -> None:
    payload = Untouchable()
    wire = next_is(State, A, LAB)()
    (message,) = [message for message in map(_order, wire.links[A, LAB]) if message and message.target == B]
    actions = wire.sessions[LAB].feed(Received(A, message, payload))
    sends = [action for action in actions if isinstance(action, Send) and isinstance(action.message, State)]
    assert [send.peer for send in sends] == [B]
    assert sends[0].payload is payload


def _order(event: Event) -> State | None:
    message = event.message if isinstance(event, Received) else None
    return message if isinstance(message, State) and message.kind == "order" else None


def test_nobody_is_granted_a_turn_before_all_know_the_order() -> None:
    plan = make_plan(VERTICAL)
    for seed in range(10):
        wire = Wire(plan, BROUGHT, seed=seed, prompt=False).start().run()
        assert_all_done(wire)
        keys = {name: worker.order for name, worker in wire.workers.items()}  # type: ignore[attr-defined]
        assert keys[B] == keys[BUREAU] != ""
        for name in (B, BUREAU):
            done = [type(action) for action in wire.actions(name)]
            assert done.index(Take) < done.index(Run)


@pytest.mark.parametrize("short", [A, B, BUREAU])
def test_parties_that_bring_another_number_of_rows_do_not_begin(short: str) -> None:
    wire = Wire(make_plan(VERTICAL), BROUGHT | {short: Rows(7, 4)}).start().run()
    endings = wire.endings()
    assert set(endings) == {A, B, BUREAU, LAB}
    ending = endings[LAB]
    assert isinstance(ending, Fail)
    assert isinstance(ending.error, RunError)
    told = ", ".join(f"{name} {11 if name == short else 12}" for name in (A, B, BUREAU))
    assert f"different numbers of them ({told})" in str(ending.error)
    assert not any(isinstance(traced.action, Run) for traced in wire.trace)


def test_a_party_with_nothing_but_labels_keeps_step_with_the_others() -> None:
    wire = Wire(make_plan(VERTICAL, micro_batches=2), BROUGHT).start().run()
    assert_all_done(wire)
    answered = Counter(m.ticket for m in _messages(wire, LAB, BUREAU) if isinstance(m, Backward))
    given = Counter(m.ticket for m in _messages(wire, BUREAU, LAB) if isinstance(m, Forward))
    assert given == answered
    in_flight: Counter[tuple[int, int]] = Counter()
    for traced in wire.trace:
        send = traced.action
        if (
            isinstance(send, Send)
            and isinstance(send.message, Forward | Backward)
            and BUREAU in (traced.party, send.peer)
        ):
            ticket = send.message.ticket
            in_flight[ticket.turn, ticket.step] += 1 if isinstance(send.message, Forward) else -1
            steps = [step for step, count in in_flight.items() if count]
            assert len(steps) <= (1 if ticket.purpose == "train" else 2)


def _messages(wire: Wire, source: str, target: str) -> list[object]:
    return [send.message for send in wire.sent(source, target)]


@pytest.mark.parametrize("scenario", NEWER.values(), ids=NEWER.keys())
def test_every_activation_is_answered_once_and_raw_data_only_of_who_could_not_keep_step_else(
    scenario: Scenario,
) -> None:
    wire = scenario.play(3)
    topology = wire.plan.topology
    leading = {edge.name: _leading(topology, edge.target) for edge in topology.edges}
    came, answered = Counter[tuple[Ticket, str]](), Counter[tuple[Ticket, str]]()
    for name in wire.sessions:
        for send in wire.sent(name):
            message = send.message
            if isinstance(message, Forward):
                edge = topology.edge(message.edge)
                assert edge is not None
                holders = {
                    wire.plan.holder(topology.role_of(node), message.ticket.owner) for node in leading[edge.name]
                }
                if topology.source_kind(edge) is None or name not in holders:
                    came[message.ticket, message.edge] += 1
            elif isinstance(message, Backward):
                answered[message.ticket, message.edge] += 1
                edge = topology.edge(message.edge)
                assert edge is not None
                gradient = edge.gradient and topology.source_kind(edge) is None and message.ticket.purpose == "train"
                assert bool(message.tensors) == gradient
                assert (message.normaliser > 0) == (message.ticket.purpose == "train")
    assert came == answered
    assert set(came.values()) == {1}


def _leading(topology: Topology, node: str) -> set[str]:
    """The segments from which ways lead to a node."""
    below = {edge.source for edge in topology.inputs(node) if topology.source(edge.source) is None}
    return below.union(*(_leading(topology, each) for each in below))


@pytest.mark.parametrize("name", ["decoupled", "decoupled, relay", "decoupled, splitfed_v1", "own"])
def test_nothing_travels_on_an_edge_that_is_silent(name: str) -> None:
    wire = NEWER[name].play(5)
    turns = turns_of(wire.plan, wire.rows)
    spoken = Counter((m.edge, m.ticket.turn) for m in (s.message for s in sent(wire)) if isinstance(m, Forward))
    periods = {edge.name: edge.every for edge in wire.plan.topology.edges if edge.every > 1}
    assert periods
    crossing = {edge.name for edge in wire.plan.topology.cuts()}
    for number, work in turns.items():
        for edge, every in periods.items():
            if edge in crossing and isinstance(work, Train):
                (owner,) = work.parties
                before = sum(
                    w.steps for n, w in turns.items() if n < number and isinstance(w, Train) and w.parties == (owner,)
                )
                due = [step for step in range(before, before + work.steps) if (step + 1) % every == 0]
                assert bool(spoken[edge, number]) == bool(due)
                assert due in ([], list(range(before, before + work.steps)))


# ---------------------------------------------------------------------- predictions


PREDICTING = {
    "vanilla": (LAB,),
    "u_shaped": (A, B),
    "vertical": (LAB,),
    "vertical_u_shaped": (BUREAU,),
    "extended_vanilla": (LAB,),
    "multi_task": (LAB, LAB_2),
    "multi_hop": (LAB,),
    "decoupled": (LAB,),
    "semi_supervised": (LAB,),
    "bottleneck": (LAB,),
    "own": (B,),
}
"""Who answers."""


def predicting(topology: str, seed: int | None = None, absent: tuple[str, ...] = (), dropout: float = 0.5) -> Wire:
    plan = make_plan(topology, party_dropout=dropout if topology in ("vertical", "multi_task") else 0.0)
    rows = dict.fromkeys(BROUGHT, Rows(0, 9))
    return Wire(plan, rows, seed=seed, prompt=seed is None, task="predict", absent=absent).start()


@pytest.mark.parametrize("topology", PREDICTING)
def test_predictions_go_through_without_targets_and_without_a_step(topology: str) -> None:
    for seed in (None, *range(6)):
        wire = predicting(topology, seed).run()
        assert_all_done(wire)
        assert_nothing_is_kept(wire)
        runs = [(traced.party, traced.action) for traced in wire.trace if isinstance(traced.action, Run)]
        assert {run.direction for _, run in runs} == {"load", "forward"}
        assert not any(isinstance(traced.action, Step) for traced in wire.trace)
        assert not any(run.node.startswith("y") for _, run in runs)
        helping = {"auxiliary", "probe"} | ({"decoder"} if topology == "semi_supervised" else set())
        assert not {run.node for _, run in runs} & helping
        plan = wire.plan
        answering = {loss.name for loss in plan.topology.losses if not loss.auxiliary}
        assert {party for party, run in runs if run.node in answering} == set(PREDICTING[topology])
        rows = [run.batch.rows for _, run in runs if run.node in answering and run.batch is not None]
        assert sum(rows) == 9 * len(answering) * len(plan.owners)
        assert not any(tell.sums for name in wire.sessions for tell in wire.tells(name))


def test_who_only_has_labels_may_stay_away_from_predictions_and_a_party_too_if_the_model_learned_to() -> None:
    for absent in ((BUREAU,), (B, BUREAU), (A, BUREAU), (A,)):
        wire = predicting("vertical", 1, absent).run()
        assert_all_done(wire)
        used = {traced.action.node for traced in wire.trace if isinstance(traced.action, Run)}
        assert ("bottom_hospital_a" in used) == (A not in absent)
        assert ("bottom_hospital_b" in used) == (B not in absent)
        members = [send.message.members for send in wire.sent(LAB) if isinstance(send.message, Welcome)]
        assert all(set(each) == {A, B, BUREAU, LAB} - set(absent) for each in members)


def test_a_member_does_without_another_only_where_the_plan_allows_it() -> None:
    for dropout, done in ((0.5, True), (0.0, False)):
        wire = predicting("vertical", None, (A,), dropout).run()
        assert (not any(isinstance(ending, Fail) for ending in wire.endings().values())) == done
        refusals = [s.message.rule for s in sent(wire) if isinstance(s.message, Refuse)]
        assert set(refusals) == (set() if done else {"wrong-members"})


def test_nobody_may_be_missing_when_training() -> None:
    wire = Wire(make_plan(VERTICAL, party_dropout=0.5), BROUGHT, absent=(A,)).start().run()
    assert {s.message.rule for s in sent(wire) if isinstance(s.message, Refuse)} == {"wrong-members"}


def test_who_joins_what_others_have_cannot_be_missing() -> None:
    plan = make_plan("extended_vanilla", party_dropout=0.5)
    assert "nothing is left that answers" in plan.why_not_without([HUB])
    assert C not in plan.terms.parties
    assert ALL not in plan.terms.parties
