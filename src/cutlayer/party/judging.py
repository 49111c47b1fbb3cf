"""Turns judged as they end: a server's segment goes back behind those that moved it as most others did not."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from cutlayer.errors import PlanError
from cutlayer.model.rounds import TurnCheck
from cutlayer.model.state import MODEL, ReplicaState
from cutlayer.observe.facts import Fact, Noticed, TurnedDown
from cutlayer.party.replicas import Replicas
from cutlayer.plan.plan import Plan
from cutlayer.plan.terms import Terms, TurnCheckTerms
from cutlayer.protocol.events import Replica as Key
from cutlayer.protocol.events import Step


def check_of(terms: Terms) -> TurnCheck | None:
    """The check of turns that a plan asks for, if it does. Raises `PlanError` for numbers that it cannot have."""
    asked = terms.training.turn_check
    if asked == TurnCheckTerms():
        return None
    return TurnCheck(window=asked.window, low=asked.low, slack=asked.slack)


def check_faults(terms: Terms) -> list[str]:
    """What is wrong with the numbers of the check that a plan asks for."""
    try:
        check_of(terms)
    except PlanError as error:
        return [*error.faults]
    return []


@dataclass(slots=True)
class _Turns:
    """The last turns of one replica, the oldest first: from which state each led to which, by their numbers."""

    states: dict[int, ReplicaState] = field(default_factory=dict)
    """The number of a state is that of the turn that led there, from 1 on; 0 is the first."""
    before: dict[int, int] = field(default_factory=dict)
    """By turn: the state that it began with."""
    now: int = 0
    """The state that the replica had before the turn that is under way."""
    steps: int = 0
    """Of the turn that is under way."""

    def ended(self, state: ReplicaState, window: int) -> int:
        """A turn has led to this state; its number. Of older turns than the last `window` nothing is kept."""
        number = max(self.before, default=0) + 1
        self.states[number], self.before[number] = state, self.now
        for old in [turn for turn in self.before if turn <= number - window]:
            del self.before[old]
        needed = self.before.keys() | set(self.before.values())
        self.states = {at: state for at, state in self.states.items() if at in needed}
        return number

    def newest(self, benign: set[int]) -> int:
        """On the way that led here, the newest state to which only turns led that are benign, or are forgotten."""
        at = max(self.before)
        while at in self.before and at not in benign:
            at = self.before[at]
        return at


class Judging:
    """Judges the turns by which clients train the replicas that party `name` shares among them, if the plan says so.

    A turn that is taken back stays among those that others are compared with: where all turns change, they soon are the
    majority. `steps`: how many an owner of rows takes in a turn.
    """

    def __init__(self, plan: Plan, name: str, replicas: Replicas, *, steps: Callable[[str], int]) -> None:
        self._name, self._replicas, self._steps = name, replicas, steps
        self._check = check_of(plan.terms)
        shared = plan.terms.parties[name].role != "client"
        self._segments = frozenset(s.name for s in plan.topology.segments if shared and plan.holds(name, s.role))
        self._turns: dict[Key, _Turns] = {}

    def before(self, step: Step) -> None:
        """A replica is about to step."""
        if self._check is not None and step.replica[0] in self._segments:
            turns = self._turns.setdefault(step.replica, _Turns())
            if not turns.states:
                turns.states[0] = self._replicas.state(step.replica).copied()

    def after(self, step: Step) -> tuple[Fact, ...]:
        """It has stepped: with the last step of a turn, that is judged, and the replica may go back to before it."""
        if self._check is None or step.replica[0] not in self._segments:
            return ()
        (owner,), turns = step.owners, self._turns[step.replica]
        turns.steps += 1
        if turns.steps < self._steps(owner):
            return ()
        turns.steps = 0
        number = turns.ended(self._replicas.state(step.replica).copied(), self._check.window)
        turns.now = turns.newest(self._benign(step.replica, turns))
        if turns.now == number:
            return ()
        self._replicas.begin(step.replica, turns.states[turns.now])
        return self._told(step, owner)

    def _benign(self, replica: Key, turns: _Turns) -> set[int]:
        assert self._check is not None
        learns = [MODEL + name for name, _ in self._replicas.pattern(replica).module.named_parameters()]
        weights = {at: {name: state.tensors[name] for name in learns} for at, state in turns.states.items()}
        pairs = [(weights[before], weights[turn]) for turn, before in turns.before.items()]
        numbers = list(turns.before)
        return {numbers[place] for place in self._check.benign(pairs)}

    def _told(self, step: Step, owner: str) -> tuple[Fact, ...]:
        segment, number = step.replica[0], step.round
        sentence = (
            f"{owner}'s turn in round {number + 1} moved {segment} as most of the last turns did not: {self._name} has "
            "taken it back"
        )
        turned = TurnedDown(party=self._name, segment=segment, owner=owner, round=number)
        return turned, Noticed(party=self._name, sentence=sentence)

    # ------------------------------------------------------------------ saves

    def state(self) -> ReplicaState:
        """What is remembered of turns: all states, which led to which, and how far the turn under way is."""
        tensors: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for (segment, owner), turns in self._turns.items():
            place = f"{segment}|{owner}"
            counts |= {f"{place}|now": turns.now, f"{place}|steps": turns.steps}
            counts |= {f"{place}|before|{turn}": before for turn, before in turns.before.items()}
            for at, state in turns.states.items():
                tensors |= {f"{place}|{at}|{name}": tensor for name, tensor in state.tensors.items()}
                counts |= {f"{place}|{at}|{name}": count for name, count in state.counts.items()}
        return ReplicaState(tensors=tensors, counts=counts)

    def load(self, state: ReplicaState | None) -> None:
        """Remember what a save remembered, and nothing else."""
        self._turns.clear()
        for key, count in sorted(state.counts.items()) if state else ():
            segment, owner, what, *name = key.split("|", 3)
            turns = self._turns.setdefault((segment, owner), _Turns())
            if what == "now":
                turns.now = count
            elif what == "steps":
                turns.steps = count
            elif what == "before":
                turns.before[int(name[0])] = count
            else:
                turns.states.setdefault(int(what), ReplicaState(tensors={}, counts={})).counts[name[0]] = count
        for key, tensor in state.tensors.items() if state else ():
            segment, owner, at, label = key.split("|", 3)
            self._turns[segment, owner].states[int(at)].tensors[label] = tensor
        for turns in self._turns.values():
            turns.before = dict(sorted(turns.before.items()))
            turns.states = dict(sorted(turns.states.items()))
