"""Schedules: whose turn it is, over many mini-batches, and what moves between turns. Pure generators on a course.

Every party runs the same schedule and refuses a turn that differs from its own, so nothing about the order of a run is
decided by one party alone. A turn (`Train`, `Evaluate`) is granted by the conductor. What moves (`HandOver`, `Share`,
`Average`) is granted by nobody: it follows, in the schedule's order, as soon as the replicas it needs are through with
the turns before. So does a `Save`, once everything before it is over.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cutlayer.plan.course import Course

TurnUnit = Literal["epoch", "batch"]
AS_DECIDED = -1
"""As many parts as the conductor has found to be fastest."""
STEPS_TRIED = 8
Kind = Literal["weights", "gradients"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """The parties train on their own rows: `steps` steps of their round `round`, from step `first` of the round on.

    With `joined`, one step is made of all parties' batches together: one loss, summed over all their rows. Each of the
    batches has `parts` parts then, since a part of one meets the same part of all others. `tried`: how fast it goes is
    to be found out.
    """

    parties: tuple[str, ...]
    round: int
    first: int
    steps: int
    joined: bool = False
    parts: int = 0
    """If it is not the plan's number: how many, or `AS_DECIDED`."""
    silent: frozenset[str] = frozenset()
    """Edges that carry nothing in this turn."""
    tried: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """The parties' held-out rows run through the cut in eval mode, after `round`."""

    parties: tuple[str, ...]
    round: int
    silent: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Predict:
    """Rows that nobody trains on run through the cut in eval mode, and the answers are kept. No target travels."""

    parties: tuple[str, ...]
    silent: frozenset[str]
    round: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrust:
    """`source`, the first that brings columns, tells the others the key of the order of rows that they all follow."""

    source: str
    targets: tuple[str, ...]
    round: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HandOver:
    """`source` hands its replicas of `segments` on to `target`, whole: parameters, buffers, optimizer, LR schedule."""

    source: str
    target: str
    segments: tuple[str, ...]
    round: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The replicas of `segments` that serve these owners are added to the average that comes next, so weighted.

    `among`: all whose replicas come into that average, those of other shares too.
    """

    holders: Mapping[str, float]
    segments: tuple[str, ...]
    kind: Kind
    round: int
    among: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """What was shared since the last average goes to the takers: the mean of weights, or the sum of gradients.

    Replicas at the server take it always. `among`: all whose replicas came into it, if their shares are under masks of
    their own; those tell the keys first.
    """

    takers: tuple[str, ...]
    segments: tuple[str, ...]
    kind: Kind
    round: int
    among: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Save:
    """All parties write down their part of the run, which can be taken up from here. `ends_round`: nothing of `round`
    is left to do, so that who takes part may change."""

    round: int
    ends_round: bool


Turn = Train | Evaluate | Predict
Movement = HandOver | Share | Average | Entrust
Work = Turn | Movement | Save


def alternating(course: "Course") -> Iterator[Work]:
    """One client after another, an epoch or a mini-batch at a time; client segments stay, server segments are shared.

    With `turn = "batch"` clients with more steps go on alone when the others' round is over.
    Source: Gawali et al. 2020 (arXiv 2012.12591), "alternate client" and "alternate mini-batch" training.
    """
    for number in course.rounds_left:
        yield from _in_turn(course, number)
        yield from _evaluation(course, number)


def relay(course: "Course") -> Iterator[Work]:
    """One client after another on one state, handed on whole: the same as one model on the same order of batches.

    Each evaluates on receiving, before it trains; at the end the last state goes to all.
    Source: Gupta, Raskar 2018 (arXiv 1810.06060), weights handed on peer to peer.
    """
    holder, last = "", max(course.rounds - 1, 0)
    for number in course.rounds_left:
        evaluated: set[str] = set()
        for train in _in_turn(course, number):
            (party,) = train.parties
            if holder and party != holder:
                yield HandOver(source=holder, target=party, segments=course.client_segments, round=number)
            if holder and party not in evaluated and course.held_out_rows[party]:
                yield Evaluate(parties=(party,), round=number)
            evaluated.add(party)
            holder = party
            yield train
    for party in course.clients if holder else ():
        if party != holder:
            yield HandOver(source=holder, target=party, segments=course.client_segments, round=last)
    if course.rounds:
        yield from _evaluation(course, last)


def parallel(course: "Course") -> Iterator[Work]:
    """All clients at once, their batches joined into one step at the server. A client out of rows adds none.

    Client segments stay equal everywhere, since every client steps with the sum of all clients' gradients; or they are
    each client's own. With equal ones this is training on the union's batches.
    """
    for number in course.rounds_left:
        chosen = course.chosen(number)
        for step in range(max(map(course.steps, chosen), default=0)):
            present = tuple(party for party in chosen if step < course.steps(party))
            parts = course.parts(present, number, step)
            yield Train(parties=present, round=number, first=step, steps=1, joined=True, parts=parts)
            if course.equal_clients:
                segments, holders = course.client_segments, dict.fromkeys(present, 1.0)
                yield Share(holders=holders, segments=segments, kind="gradients", round=number, among=holders)
                among = holders if course.own_masks else {}
                yield Average(takers=course.clients, segments=segments, kind="gradients", round=number, among=among)
        yield from _evaluation(course, number)


def splitfed_v1(course: "Course") -> Iterator[Work]:
    """Clients train side by side, each with a replica of every segment for itself; then all segments are averaged.

    The same as FedAvg of the uncut model. Source: Thapa et al. 2020, SplitFed (arXiv 2004.12088), algorithm 1.
    """
    for number in course.rounds_left:
        yield from _local_training(course, number, course.chosen(number))
        yield from _evaluation(course, number, together=False)


def splitfed_v2(course: "Course") -> Iterator[Work]:
    """One client after another, shuffled anew each round, on one server replica; then client segments are averaged.

    Source: Thapa et al. 2020, SplitFed (arXiv 2004.12088), section 4.2.
    """
    for number in course.rounds_left:
        yield from _local_training(course, number, course.shuffled(number))
        yield from _evaluation(course, number)


def splitfed_v3(course: "Course") -> Iterator[Work]:
    """As V1, but only server segments are averaged: client segments are personal.

    Source: Gawali et al. 2020 (arXiv 2012.12591), SplitFedv3.
    """
    yield from splitfed_v1(course)


def joint(course: "Course") -> Iterator[Work]:
    """Every party takes part in every ticket: each brings columns of its own, of the same rows in the same order."""
    lead, *others = [party for party in course.row_owners if party not in course.absent]
    if others:
        yield Entrust(source=lead, targets=tuple(others))
    yield from alternating(course)


def works(course: "Course", schedule: "Schedule") -> Iterator[Work]:
    """A schedule's works, with the saves between them.

    Turns are parted where edges carry something only in every so-manyth step, and where a save is due. Edges from
    absent parties are silent; clients whose segments are equal get those of one that was there when they return.
    """
    turns = _turns(course, schedule)
    return _with_saves(_tried(turns, course) if course.tries else turns, course)


def _turns(course: "Course", schedule: "Schedule") -> Iterator[Work]:
    gone = frozenset[str]().union(*(course.edges_from.get(party, ()) for party in course.absent))
    yield from _caught_up(course, schedule)
    for work in schedule.turns(course):
        if gone and isinstance(work, Train | Evaluate):
            work = replace(work, silent=work.silent | gone)
        yield from _parted(work, course) if isinstance(work, Train) and course.periods else (work,)


def _tried(works: Iterator[Work], course: "Course") -> Iterator[Work]:
    """Turns of a few steps with each number of micro-batches, once there and back; the rest with the fastest.

    The first client with enough steps tries them; the first trial warms up. Until then there is one part.
    """
    sequence = (1, *course.tries, *reversed(course.tries))
    through = False
    for work in works:
        if not isinstance(work, Train):
            yield work
        elif through:
            yield replace(work, parts=AS_DECIDED)
        elif (steps := min(STEPS_TRIED, work.steps // (len(sequence) + 1))) < 3:
            yield replace(work, parts=1)
        else:
            for at, parts in enumerate(sequence):
                yield replace(work, first=work.first + at * steps, steps=steps, parts=parts, tried=True)
            done, through = len(sequence) * steps, True
            yield replace(work, first=work.first + done, steps=work.steps - done, parts=AS_DECIDED)


def _caught_up(course: "Course", schedule: "Schedule") -> Iterator[HandOver]:
    """Clients that were away get what all clients have in common from the first that was not."""
    equal = "client" in schedule.averaged or (schedule.joined and course.equal_clients)
    stayed = [party for party in course.clients if party not in course.returned]
    for party in course.returned if equal and course.rounds_left else ():
        yield HandOver(source=stayed[0], target=party, segments=course.client_segments, round=course.rounds_left[0])


def _with_saves(works: Iterator[Work], course: "Course") -> Iterator[Work]:
    """A save after every so many rounds and steps, and at the end; never while a sum is under way, which none has."""
    since, summing, last = 0, False, None
    for work in works:
        if last is not None and work.round != last and not summing and (last + 1) % course.save_rounds == 0:
            yield Save(round=last, ends_round=True)
            since = 0
        if isinstance(work, Train) and course.save_every and not summing:
            while since + work.steps > course.save_every:
                steps = max(course.save_every - since, 0)  # a sum may have put it off
                if steps:
                    yield replace(work, steps=steps)
                    work = replace(work, first=work.first + steps, steps=work.steps - steps)
                yield Save(round=work.round, ends_round=False)
                since = 0
        yield work
        since += work.steps if isinstance(work, Train) else 0
        summing = isinstance(work, Share) or (summing and not isinstance(work, Average))
        last = work.round
    if last is not None:
        yield Save(round=last, ends_round=True)


def predictions(course: "Course", absent: Collection[str]) -> Iterator[Work]:
    """One pass over the rows that each owner brings, without what only training needs, and without absent parties."""
    silent = course.unused_in_prediction.union(*(course.edges_from.get(party, ()) for party in absent))
    lead, *others = [party for party in course.feature_owners if party not in absent] or [""]
    if others:
        yield Entrust(source=lead, targets=tuple(others))
    for owner in course.clients:
        if course.held_out_rows[owner]:
            yield Predict(parties=(owner,), silent=silent)


def _parted(train: Train, course: "Course") -> Iterator[Train]:
    """A turn as turns in which the same edges are silent: an edge of period h speaks in each h-th step of an owner."""
    (owner,) = train.parties
    start, before = train.first, course.steps_before(owner, train.round)
    for step in range(train.first, train.first + train.steps):
        silent, following = (
            frozenset(name for name, every in course.periods.items() if (before + at + 1) % every)
            for at in (step, step + 1)
        )
        if step + 1 == train.first + train.steps or silent != following:
            yield replace(train, first=start, steps=step + 1 - start, silent=silent)
            start = step + 1


def _in_turn(course: "Course", number: int) -> Iterator[Train]:
    """The turns of a round, one client after another, by epoch or by mini-batch."""
    chosen = course.chosen(number)
    if course.turn == "epoch":
        for party in chosen:
            if steps := course.steps(party):
                yield Train(parties=(party,), round=number, first=0, steps=steps)
        return
    for step in range(max(map(course.steps, chosen), default=0)):
        for party in chosen:
            if step < course.steps(party):
                yield Train(parties=(party,), round=number, first=step, steps=1)


def _local_training(course: "Course", number: int, order: tuple[str, ...]) -> Iterator[Work]:
    """Each client's whole round, shared as it ends; then the mean goes to whoever needs it next, in the end to all."""
    segments = course.averaged_segments
    trained = {party: float(course.train_rows[party]) for party in order if course.steps(party)}
    for party, weight in trained.items():
        yield Train(parties=(party,), round=number, first=0, steps=course.steps(party))
        yield Share(holders={party: weight}, segments=segments, kind="weights", round=number, among=trained)
    if trained:
        among = trained if course.own_masks else {}
        yield Average(takers=_takers(course, number), segments=segments, kind="weights", round=number, among=among)


def _takers(course: "Course", number: int) -> tuple[str, ...]:
    """Who needs a round's mean: all that evaluate or train before there is another one, and in the end everybody."""
    if course.all_take:
        return course.clients
    needed = set(course.evaluated(number))
    for following in range(number + 1, course.rounds):
        needed.update(course.chosen(following))
        if any(map(course.steps, course.chosen(following))):
            return tuple(party for party in course.clients if party in needed)
    return course.clients


def _evaluation(course: "Course", number: int, *, together: bool = True) -> Iterator[Evaluate]:
    holders = course.evaluated(number)
    if together and holders:
        yield Evaluate(parties=holders, round=number)
    elif not together:
        for party in holders:
            yield Evaluate(parties=(party,), round=number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A generator of turns, and what it means for replicas.

    `server_shared`: a server segment is one replica for all clients, else one for each. `averaged`: the roles whose
    segments' weights are averaged. `hands_over`: client segments are handed on. `joined`: batches are joined.
    `together`: all parties' columns of the same rows travel together.
    """

    turns: Callable[["Course"], Iterator[Work]]
    server_shared: bool = True
    averaged: tuple[str, ...] = ()
    hands_over: bool = False
    joined: bool = False
    together: bool = False


SCHEDULES: dict[str, Schedule] = {
    "alternating": Schedule(turns=alternating),
    "relay": Schedule(turns=relay, hands_over=True),
    "parallel": Schedule(turns=parallel, joined=True),
    "splitfed_v1": Schedule(turns=splitfed_v1, server_shared=False, averaged=("client", "server")),
    "splitfed_v2": Schedule(turns=splitfed_v2, averaged=("client",)),
    "splitfed_v3": Schedule(turns=splitfed_v3, server_shared=False, averaged=("server",)),
    "joint": Schedule(turns=joint, together=True),
}

_ANY = frozenset(SCHEDULES) - {"joint"}
_JOINT = frozenset({"joint"})

LEGAL: dict[str, frozenset[str]] = {
    "vanilla": _ANY,
    "u_shaped": _ANY,
    "vertical": _JOINT,
    "vertical_u_shaped": _JOINT,
    "extended_vanilla": _JOINT,
    "multi_task": _JOINT,
    "multi_hop": frozenset({"alternating", "relay", "splitfed_v2"}),
    "decoupled": _ANY - {"parallel"},
    "semi_supervised": _ANY - {"parallel"},
    "bottleneck": _ANY,
    "own": frozenset({"alternating", "relay", "splitfed_v2", "joint"}),
}
"""The schedules that mean something with each topology."""
