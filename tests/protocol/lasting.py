"""Runs that keep saves, on a wire: what each party's disk has of them, and sessions that take such a run up again."""

import copy
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cutlayer.plan.membership import ALL, NEVER, Log
from cutlayer.plan.plan import Plan
from cutlayer.protocol.agenda import shared_agendas
from cutlayer.protocol.events import Action, Commit, Event, Finish, Lost, Movement, Restore, Run, Step, Store, Stored
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.session import Session
from protocol.joined import Wire
from protocol.plans import LAB
from protocol.scenarios import Scenario
from protocol.words import Words

UsedStates = dict[Any, str]


@dataclass
class Disk:
    """What would be left of a party after a power cut: saves that are written, by number, and which of them hold."""

    saves: dict[int, Words] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    rounds: dict[int, int] = field(default_factory=dict)
    log: Log = ALL
    finished: bool = False
    over: dict[str, Rows] = field(default_factory=dict)
    """At a conductor whose run is over but for the goodbyes: the other members, which may not all have heard so."""

    def standing(self, *, again: bool = True, without: Collection[str] = ()) -> Standing:
        return Standing(
            lasting=True,
            again=again,
            saves=tuple(sorted(self.saves)),
            committed=tuple(self.committed),
            rounds=dict(self.rounds),
            log=self.log,
            without=frozenset(without),
            over=self.over,
        )

    def as_of(self, save: int) -> "Disk":
        """The disk as it was when this save had just come to hold."""
        return Disk(
            saves={number: kept for number, kept in self.saves.items() if number <= save},
            committed=[number for number in self.committed if number <= save],
            rounds={number: each for number, each in self.rounds.items() if number <= save},
            log=self.log,
        )


class Lasting(Wire):
    """A wire whose parties keep saves. A part of a save may take any time to be written, unless it is `hasty`."""

    def __init__(
        self,
        plan: Plan,
        rows: Mapping[str, Rows],
        disks: Mapping[str, Disk] | None = None,
        *,
        without: Collection[str] = (),
        hasty: bool = False,
        **how: Any,
    ) -> None:
        super().__init__(plan, rows, **how)
        self.disks = {name: disks[name] if disks else Disk() for name in plan.terms.parties}
        agendas = shared_agendas(plan) if how.get("shared") else None
        self.sessions = {
            name: Session(
                plan,
                name,
                rows.get(name, Rows()),
                agendas=agendas,
                standing=self.disks[name].standing(again=disks is not None, without=without if name == LAB else ()),
            )
            for name in plan.terms.parties
        }
        self.writing: dict[str, deque[Event]] = {name: deque() for name in self.sessions}
        self.parts: dict[tuple[str, int], Words] = {}
        """What is being written."""
        self._hasty = hasty

    def _queues(self) -> list[tuple[str, deque[Event]]]:
        return super()._queues() + [(me, events) for me, events in self.writing.items() if events]

    def _fed(self, party: str, event: Event) -> list[Action]:
        if isinstance(event, Stored):
            self.disks[party].saves[event.number] = self.parts.pop((party, event.number))
        return super()._fed(party, event)

    def _perform(self, party: str, action: Action) -> None:
        if not isinstance(action, Store):
            super()._perform(party, action)
            self._keep(party, action)
            return
        self.trace.append(type(self.trace[0])(party, action))
        self.parts[party, action.number] = copy.deepcopy(self.words(party))
        (self.results if self._hasty else self.writing)[party].append(Stored(action.number))

    def _keep(self, party: str, action: Action) -> None:
        disk = self.disks[party]
        match action:
            case Restore():
                disk.log = action.start.log
                kept = disk.saves.get(action.save)
                assert action.save == NEVER or kept is not None, "it has this save"
                self.workers[party] = Words(self.plan, party) if kept is None else _anew(kept)
                for number in [number for number in disk.saves if number > action.save]:
                    del disk.saves[number]
                disk.committed = [number for number in disk.committed if number <= action.save]
            case Commit():
                assert action.number in disk.saves, "what holds is written"
                disk.committed.append(action.number)
                if action.ends_round:
                    disk.rounds[action.number] = action.round
            case Finish():
                others = {name: rows for name, rows in self.sessions[party].members.items() if name != party}
                disk.finished, disk.over = True, {} if action.left else others
            case _:
                pass

    def words(self, party: str) -> Words:
        worker = self.workers[party]
        assert isinstance(worker, Words)
        return worker

    def lose(self, party: str) -> None:
        """The party is killed: whatever it had not written is gone, and its peers lose it after what it had sent."""
        del self.sessions[party]
        self.results[party].clear()
        self.writing[party].clear()
        for source, target in [link for link in self.links if party in link]:
            if source == party:
                self.links[source, target].append(Lost(party, "it was killed"))
            else:
                del self.links[source, target]

    def feed(self, party: str, event: Event) -> list[Action]:
        return super().feed(party, event) if party in self.sessions else []


def _anew(kept: Words) -> Words:
    """What another process makes of a save: it is told the order of rows again."""
    words = copy.deepcopy(kept)
    words.used, words.order = {}, ""
    return words


def saving(scenario: Scenario, every: int = 2, **more: Any) -> Scenario:
    return replace(scenario, more={**scenario.more, "save_every": every, **more})


def lasting(scenario: Scenario, disks: Mapping[str, Disk] | None = None, **how: Any) -> Lasting:
    """The scenario's parties, connected, with what they have of the run already."""
    wire = Lasting(scenario.plan, scenario.brought, disks, **how)
    wire.start()
    return wire


def work(actions: list[Action]) -> dict[str, list[Any]]:
    """What a party did that changes its state, in order by replica; and what it moved, and told."""
    done: dict[str, list[Any]] = {}
    for action in actions:
        if isinstance(action, Step):
            done.setdefault(f"step {action.replica}", []).append(action)
        elif isinstance(action, Run) and action.direction != "load":
            about = (action.ticket, action.node, action.batch, action.owners, action.rows)
            done.setdefault(f"{action.direction} {action.replica}", []).append(about)
        elif isinstance(action, Movement):
            done.setdefault(type(action).__name__, []).append(action)
    return done


def used(wire: Wire, party: str) -> UsedStates:
    worker = wire.workers[party]
    assert isinstance(worker, Words)
    return worker.used


def final(wire: Wire, party: str) -> dict[Any, str]:
    """The states of all replicas in the end, by whoever worked on them."""
    worker = wire.workers[party]
    assert isinstance(worker, Words)
    segments = wire.plan.topology.segments
    return {(s.name, owner): worker.state((s.name, owner)) for s in segments for owner in wire.plan.terms.parties}
