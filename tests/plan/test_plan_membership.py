"""Claims about who takes part from which round on: the arithmetic of the log, and what the schedule makes of it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.plan.check import faults
from cutlayer.plan.course import Course
from cutlayer.plan.membership import (
    ALL,
    NEVER,
    Log,
    Membership,
    covering,
    own_save,
    until,
    with_absent,
)
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import SCHEDULES, Average, Entrust, Evaluate, HandOver, Save, Train, Work, works
from cutlayer.plan.terms import SaveTerms
from plan.test_plan_check import CLIENT, SOUND, training
from plan.test_plan_dag import planned, vertical, with_parties
from plan.test_plan_schedules import course, word

ALTERNATING = SCHEDULES["alternating"]
NAMES = ("a", "b", "c")
CHANGES = st.lists(st.tuples(st.integers(0, 9), st.sets(st.sampled_from(NAMES), max_size=2)), max_size=6)
"""At which save a new membership begins, and who is absent from it."""


def log_of(changes: list[tuple[int, set[str]]], absent_at_first: tuple[str, ...] = ()) -> Log:
    """A log that grew as a run was taken up again and again. Saves ten apart end rounds; others do not."""
    log: Log = (Membership(absent=absent_at_first),)
    for number, (save, absent) in enumerate(changes):
        log = with_absent(until(log, save), sorted(absent), after=save, from_round=number)
    return log


def there(log: Log, save: int) -> set[str]:
    """Who took part when a save was made, by the log itself: the last that began before it."""
    absent: tuple[str, ...] = log[0].absent
    for each in log:
        if each.after < save:
            absent = each.absent
    return set(NAMES) - set(absent)


@given(CHANGES, st.integers(NEVER, 12), st.sampled_from(NAMES))
def test_a_party_goes_on_from_its_own_last_save_before_it_was_absent(
    changes: list[tuple[int, set[str]]], save: int, party: str
) -> None:
    """Of all saves up to this one that it took part in, the newest, unless it was absent from a later one on."""
    log = log_of(changes)
    own = own_save(log, party, save)
    assert own == next((each for each in range(save, NEVER, -1) if party in there(log, each)), NEVER)
    assert own_save(log, party, own) == own


@given(CHANGES, st.integers(0, 9), st.sets(st.sampled_from(NAMES), max_size=2))
def test_a_new_membership_takes_the_place_of_all_that_began_at_its_save_or_later(
    changes: list[tuple[int, set[str]]], save: int, absent: set[str]
) -> None:
    log = log_of(changes)
    longer = with_absent(log, sorted(absent), after=save, from_round=3)
    *earlier, last = longer
    assert (last.after, last.round, set(last.absent)) == (save, 3, absent)
    assert earlier == [each for each in log if each.after < save]
    assert set(last.returned) == (set(earlier[-1].absent) - absent if earlier else set())
    assert [each.after for each in longer] == sorted({each.after for each in longer})
    for number in range(save + 1):
        assert there(longer, number) == there(log, number)


@given(CHANGES, st.integers(NEVER, 12))
def test_what_began_after_the_save_that_a_run_is_taken_up_from_is_as_if_it_had_never_been(
    changes: list[tuple[int, set[str]]], save: int
) -> None:
    log = log_of(changes)
    left = until(log, save)
    assert left == tuple(each for each in log if each.after <= save)
    assert until(left, save) == left
    for number in range(save + 1):
        assert covering(left, number) == covering(log, number)
        assert {own_save(left, party, number) for party in NAMES} == {own_save(log, party, number) for party in NAMES}


def test_a_run_taken_up_from_its_beginning_may_begin_without_some() -> None:
    assert until((), NEVER) == ALL
    fresh = with_absent(ALL, ("b",), after=NEVER, from_round=0)
    assert fresh == (Membership(absent=("b",)),)
    assert own_save(fresh, "b", 7) == NEVER
    assert own_save(fresh, "a", 7) == 7


# ---------------------------------------------------------------------- the schedule


def said(schedule: str, *train: int, **terms: Any) -> list[str]:
    return [word(work) for work in works(course(*train, schedule=schedule, **terms), SCHEDULES[schedule])]


@pytest.mark.parametrize("schedule", ["alternating", "parallel", "splitfed_v1", "splitfed_v2", "splitfed_v3", "relay"])
def test_a_run_from_a_later_round_on_is_the_end_of_the_whole_run(schedule: str) -> None:
    terms: dict[str, Any] = {"held_out": (1, 0, 2), "rounds": 4, "clients_per_round": 2, "schedule": schedule}
    whole = list(works(course(9, 4, 8, **terms), SCHEDULES[schedule]))
    for first in range(5):
        each = course(9, 4, 8, first_round=first, **terms)
        kinds = Train if schedule == "relay" and first else object  # the state is where it was left: nobody hands it on
        later, due = (
            [work for work in done if work.round >= first and isinstance(work, kinds)]
            for done in (works(each, SCHEDULES[schedule]), whole)
        )
        assert list(each.rounds_left) == list(range(first, 4))
        assert later == due


def test_clients_that_return_are_told_what_all_have_by_the_first_that_was_not_away() -> None:
    back: dict[str, Any] = {"first_round": 1, "rounds": 2, "returned": ("a", "c")}
    for schedule in ("splitfed_v1", "splitfed_v2", "parallel"):
        assert said(schedule, 4, 4, 4, **back)[:2] == ["b to a", "b to c"], schedule
    for schedule in ("alternating", "splitfed_v3"):
        assert not any("to" in each.split() and each[0] in "abc" for each in said(schedule, 4, 4, 4, **back)[:2])
    assert said("parallel", 4, 4, 4, equal_clients=False, **back)[0] == "abc0-0"


def test_who_returns_when_nothing_is_left_to_do_is_told_nothing() -> None:
    assert said("splitfed_v1", 4, 4, first_round=2, rounds=2, returned=("a",)) == []


def test_a_state_is_handed_to_who_returns_before_anything_else() -> None:
    each = course(4, 4, held_out=(1, 1), schedule="splitfed_v1", first_round=1, rounds=3, returned=("b",))
    first, *rest = works(each, SCHEDULES["splitfed_v1"])
    assert first == HandOver(source="a", target="b", segments=("bottom",), round=1)
    assert not any(isinstance(work, HandOver) for work in rest)


def test_with_a_quorum_every_client_takes_each_mean_so_that_any_can_tell_it() -> None:
    each = course(*[4] * 5, schedule="splitfed_v1", rounds=4, clients_per_round=2, all_take=True)
    averages = [work for work in works(each, SCHEDULES["splitfed_v1"]) if isinstance(work, Average)]
    assert len(averages) == 4
    assert {work.takers for work in averages} == {each.clients}


def test_what_an_absent_party_would_send_is_silent_and_the_order_is_told_by_the_first_that_is_there() -> None:
    edges = {"bank": frozenset({"b->top"}), "shop": frozenset({"s->top"}), "bureau": frozenset[str]()}
    each = course(9, held_out=(2,), schedule="joint", absent=("bank",), edges_from=edges, save_every=2)
    told, *rest = works(each, SCHEDULES["joint"])
    assert told == Entrust(source="shop", targets=("bureau",))
    turns = [work for work in rest if isinstance(work, Train | Evaluate)]
    assert len(turns) == 3
    assert {work.silent for work in turns} == {frozenset({"b->top"})}
    alone = replace(each, absent=("shop", "bureau"))
    assert not any(isinstance(work, Entrust) for work in works(alone, SCHEDULES["joint"]))


def test_edges_with_periods_count_on_in_a_later_round() -> None:
    whole, later = (
        [work for work in works(each, ALTERNATING) if isinstance(work, Train) and work.round]
        for first in (0, 1)
        for each in [course(9, schedule="alternating", periods={"e": 2}, rounds=3, first_round=first)]
    )
    assert whole == later
    assert {work.silent for work in whole} == {frozenset(), frozenset({"e"})}


def test_a_course_is_told_of_saves_and_members_by_the_plan() -> None:
    terms = replace(SOUND, quorum=1, saves=SaveTerms(every_steps=3), **with_clients("b"))
    membership = Membership(after=4, round=1, absent=("b",), returned=("hospital-a",))
    each = Course.of(planned(terms), {"hospital-a": 8}, {"hospital-a": 0}, membership)
    assert (each.save_every, each.all_take) == (3, True)
    assert (each.first_round, each.absent, each.returned) == (1, ("b",), ("hospital-a",))
    assert not Course.of(planned(SOUND), {"hospital-a": 8}, {"hospital-a": 0}).all_take


# ---------------------------------------------------------------------- a quorum


def with_clients(*names: str) -> dict[str, Any]:
    return {"parties": SOUND.parties | dict.fromkeys(names, CLIENT)}


FAULTY: dict[str, dict[str, Any]] = {
    "quorum = 0: how many of the 2 clients are enough": with_clients("b") | {"quorum": 0},
    "quorum = 3: how many of the 2 clients are enough": with_clients("b") | {"quorum": 3},
    "quorum = -1: how many of the 1 clients": {"quorum": -1},
    "quorum = 1, but under relay the state lies with one client": with_clients("b")
    | {"quorum": 1, "schedule": "relay"},
    "saves.every_steps = -1: a number of steps, or 0": {"saves": SaveTerms(every_steps=-1)},
}


@pytest.mark.parametrize(("sentence", "terms"), FAULTY.items(), ids=FAULTY.keys())
def test_each_fault_of_quorum_and_saves_has_its_sentence(sentence: str, terms: dict[str, Any]) -> None:
    (fault,) = faults(replace(SOUND, **terms))
    assert fault.startswith(sentence)


def test_a_quorum_of_columns_needs_a_model_that_learned_to_do_without() -> None:
    terms = vertical(labels_leave=True, quorum=1, **with_parties(bureau="labels"))
    (fault,) = faults(terms)
    assert fault.startswith("quorum = 1, but the model never learns to do without a party: say training.party_dropout")
    assert faults(replace(terms, training=replace(terms.training, party_dropout=0.5))) == []


@pytest.mark.parametrize("quorum", ["all", 1, 2])
@pytest.mark.parametrize("schedule", ["alternating", "splitfed_v3"])
def test_a_sound_quorum_is_no_fault(quorum: Any, schedule: str) -> None:
    terms = replace(SOUND, schedule=schedule, quorum=quorum, saves=SaveTerms(every_steps=5), **with_clients("b"))
    assert faults(terms) == []


def clients(quorum: Any, **terms: Any) -> Plan:
    return planned(replace(SOUND, quorum=quorum, **with_clients("b", "c"), **terms))


def test_why_training_cannot_go_on_without_too_many_clients_or_anybody_else() -> None:
    plan = clients(2)
    assert plan.why_not_go_on_without([]) == ""
    assert plan.why_not_go_on_without(["b"]) == plan.why_not_go_on_without(["hospital-a"]) == ""
    assert plan.why_not_go_on_without(["b", "c"]) == "quorum = 2, and only 1 of 3 clients are there"
    assert plan.why_not_go_on_without(["lab"]) == "nothing goes without lab, which is no client"
    assert plan.why_not_go_on_without(["b", "nobody"]) == "nothing goes without nobody, which is no client"
    assert clients("all").why_not_go_on_without(["b"]) == "quorum = all, and only 2 of 3 clients are there"
    assert clients("all").why_not_go_on_without([]) == ""


def joint(quorum: int, **terms: Any) -> Plan:
    dropping = training(party_dropout=0.5)
    return planned(vertical(labels_leave=True, quorum=quorum, **dropping | terms))


def test_why_columns_cannot_be_learned_without_who_has_the_labels_or_a_loss() -> None:
    gone = "nothing goes without bank: a loss, or its labels, would be gone"
    bureau = joint(1, **with_parties(bureau="labels"))
    assert bureau.why_not_go_on_without(["bank"]) == bureau.why_not_go_on_without(["shop"]) == ""
    assert bureau.why_not_go_on_without(["bank", "shop"]).startswith("quorum = 1, and only 0 of 2")
    assert bureau.why_not_go_on_without(["bureau"]) == "nothing goes without bureau, which is no client"
    labelled = joint(1, labels="bank")
    assert labelled.why_not_go_on_without(["bank"]) == gone
    assert labelled.why_not_go_on_without(["shop"]) == ""
    u_shaped = joint(1, topology="vertical_u_shaped", labels="bank")
    assert u_shaped.why_not_go_on_without(["bank"]) == gone
    assert u_shaped.why_not_go_on_without(["shop"]) == ""


def test_the_first_of_those_that_bring_columns_may_be_absent_too() -> None:
    plan = joint(1, **with_parties(bureau="labels"))
    assert plan.row_owners[0] == "bank"
    each = Course.of(plan, {"all": 4}, {"all": 0}, Membership(absent=("bank",)))
    told, *rest = works(each, plan.schedule)
    assert told == Entrust(source="shop", targets=("bureau",))
    assert all("bottom_bank->top" in work.silent for work in rest if isinstance(work, Train | Evaluate))


def test_who_joins_the_others_columns_is_no_client_and_never_done_without() -> None:
    plan = joint(1, topology="extended_vanilla", **with_parties(hub="middle"))
    assert plan.why_not_go_on_without(["hub"]) == "nothing goes without hub, which is no client"
    assert plan.why_not_go_on_without(["shop"]) == ""


@given(st.sets(st.sampled_from(["hospital-a", "b", "c"])), st.integers(1, 3))
def test_a_quorum_is_a_number_of_clients_whoever_they_are(absent: set[str], quorum: int) -> None:
    why = clients(quorum).why_not_go_on_without(sorted(absent))
    assert (why == "") == (not absent or 3 - len(absent) >= quorum)


def _kinds(done: list[Work]) -> list[type]:
    return [type(work) for work in done if not isinstance(work, Save)]


def test_absence_takes_a_client_from_every_round_that_is_left() -> None:
    """Its rows are not among those that the course is given."""
    each = Course.of(clients(2), {"hospital-a": 8, "c": 4}, {"hospital-a": 1, "c": 0}, Membership(absent=("b",)))
    done = list(works(each, ALTERNATING))
    assert [work.parties for work in done if isinstance(work, Train)] == [("hospital-a",), ("c",)]
    assert _kinds(done) == [Train, Train, Evaluate]
