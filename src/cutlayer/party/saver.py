"""A party's saves: its replicas, scores and place in the run, written beside the work and read when it is taken up."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from cutlayer.errors import CutlayerError, RunError
from cutlayer.model.state import ReplicaState, from_bytes, to_bytes
from cutlayer.observe.facts import Fact, Resumed, Scored
from cutlayer.party.checkpoint import Checkpoints
from cutlayer.party.notes import Notes
from cutlayer.party.replicas import Kept, Replicas, Rest
from cutlayer.plan.membership import ALL, NEVER, Log, Membership
from cutlayer.protocol.events import Commit, Restore, Store
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.resuming import Standing

LOG, FINISHED = "members", "finished"


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """What a save says beside its replicas' states, as JSON. `bases` and `rests` name objects of the save."""

    round: int
    rows: dict[str, tuple[int, int]]
    log: tuple[Membership, ...]
    scored: list[Scored]
    bases: list[tuple[str, list[str], str, int]]
    """Segment and cut; the object with what the last average left for all, if any; how many averages there were."""
    rests: list[tuple[str, str, str, str, int]]
    """Segment and owner; objects with what the replica begins with and has of its own, if any; after which average."""
    coding: str = ""
    """The object with what codecs remember, if they do."""
    defending: str = ""
    """The object with what defences have learned, if they have."""
    probing: str = ""
    """The object with what probes have found, if they have."""
    judging: str = ""
    """The object with the turns by which others are judged, if they are."""
    micro_batches: int = 0
    """How many a step has, if the conductor has decided that."""


class Saver:
    """Keeps the saves of one party. It is an observer too: the scores of a save's turns are part of it.

    Writing happens in a thread of its own, one save at a time; `done` is called there with the save's number, or with
    what went wrong.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cutlayer-saves")
        self._scored: list[Scored] = []
        self._body: dict[str, Any] = {}
        note = checkpoints.read_note(LOG)
        self._log: Log = ALL if note is None else msgspec.convert(note["log"], Log)
        self._rounds = {
            number: int(saved.body["round"])
            for number in checkpoints.committed
            if (saved := checkpoints.read(number)).milestone
        }

    @property
    def finished(self) -> bool:
        """Whether this party's part of the run is over already; a conductor's once all have left, too."""
        note = self._checkpoints.read_note(FINISHED)
        return note is not None and bool(note["left"])

    @property
    def refusals(self) -> tuple[str, ...]:
        """A sentence for each save that was there and is none of this run's, or damaged: its file, and why."""
        return self._checkpoints.refusals

    @property
    def newest(self) -> int:
        """The newest save that holds, or `NEVER`."""
        return max(self._checkpoints.committed, default=NEVER)

    def standing(self, *, again: bool, without: frozenset[str] = frozenset()) -> Standing:
        """What this party has of the run, for its session."""
        self.wait()
        there = self._checkpoints.committed
        return Standing(
            lasting=True,
            again=again or bool(self._checkpoints.numbers),
            saves=self._checkpoints.numbers,
            committed=there,
            rounds={number: self._rounds[number] for number in there if number in self._rounds},
            log=self._log,
            without=without,
            over=self._members() if self._checkpoints.read_note(FINISHED) is not None else {},
        )

    def _members(self) -> dict[str, Rows]:
        """Who took part at last, with which rows."""
        body = msgspec.convert(self._checkpoints.read(self.newest).body, Body)
        return {party: Rows(*rows) for party, rows in body.rows.items()}

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, Scored):
            self._scored.append(fact)

    # ------------------------------------------------------------------ at the session's orders

    def restore(
        self, restore: Restore, replicas: Replicas, me: str, notes: Notes | None = None
    ) -> Resumed:  # fmt: skip
        """Become what the save has of this party. Raises `RunError`."""
        self.wait()
        start, membership = restore.start, restore.start.log[-1]
        self._checkpoints.forget_after(restore.save)
        self._rounds = {number: at for number, at in self._rounds.items() if number <= restore.save}
        if start.log != self._log:
            self._log = start.log
            self._checkpoints.note(LOG, {"log": msgspec.to_builtins(start.log)})
        rows = {name: (own.train, own.held_out) for name, own in restore.members.items()}
        self._body = {"rows": rows, "log": start.log}
        self._scored = []
        if restore.save != NEVER:
            body = self._take_up(restore.save, replicas, notes)
            _check(body, restore, me, rows[me])
            if restore.save not in self._checkpoints.committed:
                self._checkpoints.commit(restore.save)  # all have it: this process was killed before it heard so
        return Resumed(
            party=me,
            save=restore.save,
            round=membership.round,
            absent=membership.absent,
            returned=membership.returned,
            scored=tuple(self._scored),
        )

    def take_up_last(self, replicas: Replicas, me: str) -> Resumed:
        """Become what the run left of this party, whose part is over. Raises `RunError`."""
        last = self.newest
        body = self._take_up(last, replicas)
        return Resumed(party=me, save=last, round=body.round, absent=(), returned=(), scored=tuple(self._scored))

    def _take_up(self, save: int, replicas: Replicas, notes: Notes | None = None) -> Body:
        saved = self._checkpoints.read(save)
        body = msgspec.convert(saved.body, Body)
        self._scored = list(body.scored)
        states = {name: from_bytes(data) for name, data in saved.objects.items()}
        replicas.take_up(
            Kept(
                rests={
                    (segment, owner): Rest(states.get(base), states.get(own), average)
                    for segment, owner, base, own, average in body.rests
                },
                bases={(segment, tuple(cut)): states[base] for segment, cut, base, _ in body.bases if base},
                averages={(segment, tuple(cut)): count for segment, cut, _, count in body.bases},
            )
        )
        if notes is not None:
            notes.coding.load(states.get(body.coding))
            notes.defending.load(states.get(body.defending))
            notes.probing.load(states.get(body.probing))
            notes.judging.load(states.get(body.judging))
            notes.pace.decided = body.micro_batches or notes.pace.decided
        return body

    def store(
        self,
        store: Store,
        replicas: Replicas,
        done: Callable[[int, CutlayerError | None], None],
        notes: Notes | None = None,
    ) -> None:
        """Copy what the save needs now, and write it beside the work."""
        objects = _Objects()
        kept, memories = replicas.kept(), {} if notes is None else notes.states()
        bases = [
            (segment, list(cut), objects.add(kept.bases.get((segment, cut))), count)
            for (segment, cut), count in kept.averages.items()
        ]
        rests = [
            (*key, objects.add(rest.base), objects.add(rest.own), rest.average) for key, rest in kept.rests.items()
        ]
        body = self._body | {
            "round": store.round,
            "scored": list(self._scored),
            "bases": bases,
            "rests": rests,
            **{name: objects.add(own if own.tensors or own.counts else None) for name, own in memories.items()},
            "micro_batches": 0 if notes is None else notes.pace.decided,
        }
        self._writer.submit(self._write, store, body, objects.found, done)

    def _write(
        self,
        store: Store,
        body: Mapping[str, Any],
        objects: Mapping[str, bytes],
        done: Callable[[int, CutlayerError | None], None],
    ) -> None:
        try:
            self._checkpoints.write(store.number, msgspec.to_builtins(body), objects, milestone=store.ends_round)
        except CutlayerError as error:
            done(store.number, error)
        else:
            done(store.number, None)

    def commit(self, commit: Commit, failed: Callable[[CutlayerError], None]) -> None:
        """The save holds; older ones go, beside the work. `failed` is told there if they cannot."""
        self._checkpoints.mark(commit.number)
        self._writer.submit(self._prune, failed)
        if commit.ends_round:
            self._rounds[commit.number] = commit.round

    def _prune(self, failed: Callable[[CutlayerError], None]) -> None:
        try:
            self._checkpoints.prune()
        except CutlayerError as error:
            failed(error)

    def finish(self, *, left: bool) -> None:
        """This party's part of the run is over, and lasts."""
        self._checkpoints.note(FINISHED, {"save": self.newest, "left": left})

    def clear(self) -> None:
        """Forget the run: the next one begins anew."""
        self.wait()
        self._checkpoints.clear()
        self._log, self._rounds = ALL, {}

    def close(self) -> None:
        """End the writing thread, after what it has to write."""
        self._writer.shutdown(wait=True)

    def wait(self) -> None:
        """Until what is to be written is."""
        self._writer.submit(int).result()


def _check(body: Body, restore: Restore, me: str, rows: tuple[int, int]) -> None:
    """Whether a save is of the run that goes on. Raises `RunError`."""
    if body.rows[me] != rows:
        had, brings = (f"{train} rows and {held_out} held out" for train, held_out in (body.rows[me], rows))
        raise RunError(
            f"{me} had {had} when save {restore.save} was made, and brings {brings} now: bring the same ones, or begin "
            "the run anew"
        )
    if body.log != tuple(each for each in restore.start.log if each.after < restore.save):
        raise RunError(f"save {restore.save} of {me} was made among other members: begin the run anew")


class _Objects:
    """The objects of a save: each state once, however many replicas begin with it."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self._names: dict[int, str] = {}

    def add(self, state: Any) -> str:
        """The name under which a state is saved; nothing for none."""
        if state is None:
            return ""
        assert isinstance(state, ReplicaState)
        name = self._names.setdefault(id(state), str(len(self._names)))
        if name not in self.found:
            self.found[name] = to_bytes(state)
        return name
