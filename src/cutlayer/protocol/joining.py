"""Before the run: who is here, with which rows and saves; from where all begin, or take the run up."""

from collections.abc import Collection, Mapping, Sequence

from cutlayer.errors import RemoteProtocolError, RunError
from cutlayer.plan.membership import NEVER, Log, Start, own_save
from cutlayer.plan.plan import Plan
from cutlayer.protocol.messages import VERSION, Hello, Rows, Task, Welcome, run_name
from cutlayer.protocol.resuming import Standing


class Joining:
    """What parties say of themselves before the run, checked for party `me`, which brings `rows` and its `standing`."""

    def __init__(self, plan: Plan, me: str, rows: Rows, task: Task, standing: Standing) -> None:
        self._plan, self._me, self._rows, self._task = plan, me, rows, task
        self._standing = standing
        self._here: dict[str, Hello] = {}
        """Conductor: what those who have joined said."""
        self.late = standing.without if not plan.why_not_go_on_without(standing.without) else frozenset[str]()
        """Conductor: parties that are not waited for."""
        self._awaited = plan.terms.parties.keys() - {me, *standing.absent, *self.late}
        """Conductor: those that are, and are not here."""
        self._bound: set[str] = set()
        """Conductor: the clients with whom, and no others, a round is to be done again, if one was opened already."""
        self._bind(standing.opened, standing.present)

    def hello(self) -> Hello:
        standing = self._standing
        said = self._plan.digest, self._me, self._rows, self._task, standing.saves, standing.newest
        return Hello(VERSION, *said, standing.opened, standing.present)

    def check(self, peer: str, hello: Hello) -> None:
        """Whether a peer speaks of the same as I. Raises `RemoteProtocolError`."""
        if hello.version != VERSION:
            raise RemoteProtocolError("wrong-version", peer, f"it speaks {hello.version}, we speak {VERSION}")
        if hello.party != peer:
            raise RemoteProtocolError("wrong-name", peer, f"it calls itself {hello.party!r}")
        if hello.plan != self._plan.digest:
            detail = f"its plan is {hello.plan[:12]}…, ours {self._plan.digest[:12]}…: exchange plan.toml and its files"
            raise RemoteProtocolError("wrong-plan", peer, detail)
        if hello.task != self._task:
            raise RemoteProtocolError("wrong-task", peer, f"it came to {hello.task}, we are here to {self._task}")

    # ------------------------------------------------------------------ at the conductor

    def joined(self, peer: str, hello: Hello) -> None:
        """A peer is here."""
        self._here[peer] = hello
        self._awaited.discard(peer)
        self._bind(hello.opened, hello.present)

    def _bind(self, opened: int, present: Collection[str]) -> None:
        """A sum was opened when these took part, in a round whose end no save holds: they must when it is repeated."""
        if opened > max(self._standing.rounds.values(), default=NEVER):
            self._bound.update(each for each in present if each in self._plan.clients)
            self.late -= self._bound
            self._awaited |= self._bound - self._here.keys() - {self._me}

    @property
    def apart(self) -> frozenset[str]:
        """Conductor: clients that are here and were not when the sum of the round was opened: they wait for its end."""
        others = [party for party in self._plan.clients if self._bound and party not in self._bound]
        can_wait = self._standing.lasting and not self._plan.why_not_go_on_without(others)
        return frozenset(others).intersection(self._here) if can_wait else frozenset()

    def waiting_for(self, missing: Sequence[str]) -> str:
        """Conductor: who must come, for a person."""
        bound = [party for party in missing if party in self._bound]
        why = f", as a sum was opened when {', '.join(bound)} took part, and its round has not ended" if bound else ""
        return f"{', '.join(missing)} to join{why}"

    def left(self, peer: str) -> None:
        """A peer is gone again, or begins anew."""
        if self._here.pop(peer, None) is not None and peer not in self.late:
            self._awaited.add(peer)

    def ready(self, *, patient: bool = True) -> bool:
        """Whether all are here that must be; without patience, all that the run cannot do without."""
        if patient or not self._awaited:
            return not self._awaited
        there = {*self._here, self._me, *self._standing.absent}
        gone = [party for party in self._plan.clients if party not in there]
        if self._bound.intersection(gone):
            return False
        return self._task == "train" and self._awaited <= {*gone} and not self._plan.why_not_go_on_without(gone)

    def begin(self) -> Welcome:
        """What all are told, now that all who must be are here.

        Raises `RunError` where that would be to begin anew though a save held: only a person may want that.
        """
        members = {
            party: self._here[party].rows if party in self._here else self._rows
            for party in self._plan.terms.parties
            if party in self._here or party == self._me
        }
        start = Start()
        if self._task == "train":
            saves = {party: hello.saves for party, hello in self._here.items()} | {self._me: self._standing.saves}
            start = self._standing.start(saves, [p for p in self._plan.terms.parties if p not in members])
            self._check_begins(start)
        return Welcome(self._named(members), members, start.log, start.save)

    def over(self) -> Welcome:
        """What the members of a run were told last that is over."""
        members = {**self._standing.over, self._me: self._rows}
        return Welcome(self._named(members), members, self._standing.log, max(self._standing.committed, default=NEVER))

    def _check_begins(self, start: Start) -> None:
        holds = {party: hello.holds for party, hello in self._here.items()} | {self._me: self._standing.newest}
        newest = max(holds.values())
        same = start.log[-1].absent == self._standing.log[-1].absent
        begun = newest == self._standing.newest and not self._standing.rounds  # no round has ended yet
        if start.save != NEVER or newest == NEVER or (begun and not same):
            return
        have, lack = ([party for party, held in holds.items() if (held != NEVER) == has] for has in (True, False))
        without = f"{', '.join(lack)} has none" if lack else "no save is with all of them"
        raise RunError(
            f"{', '.join(have)} has saves of this run, but {without}: give each party the place of its saves, or begin "
            "anew at all of them (`cutlayer run --anew`)"
        )

    def _is_sound(self, log: Log) -> bool:
        """Whether a log can be that of a run of this plan: in order, of clients, who return if they were absent."""
        clients, rounds = set(self._plan.clients), self._plan.terms.training.rounds
        before: tuple[str, ...] = ()
        for each in log:
            returned = tuple(party for party in before if party not in each.absent)
            if not clients.issuperset(each.absent) or each.returned != returned or not 0 <= each.round <= rounds:
                return False
            before = each.absent
        afters = [each.after for each in log]
        return bool(log) and afters == sorted(set(afters)) and afters[0] >= NEVER

    def again(self, peer: str, welcome: Welcome, last: int) -> Welcome:
        """What a member is told that was lost when all was over: the last save is where it is."""
        members = {**welcome.members, peer: self._here[peer].rows}
        return Welcome(self._named(members), members, welcome.log, last)

    def _named(self, members: Mapping[str, Rows]) -> str:
        return run_name(self._plan.digest, self._task, members) if self._rows.nonce else ""

    # ------------------------------------------------------------------ at a member

    def check_welcome(self, peer: str, welcome: Welcome) -> None:
        """Whether I can begin as the conductor says. Raises `RemoteProtocolError`."""
        members, log = welcome.members, welcome.log
        missing = [party for party in self._plan.terms.parties if party not in members]
        if members.keys() - self._plan.terms.parties.keys() or members.get(self._me) != self._rows:
            raise RemoteProtocolError("wrong-rows", peer, "its members are not the plan's, or our rows not ours")
        if self._rows.nonce and welcome.run != run_name(self._plan.digest, self._task, members):
            raise RemoteProtocolError("wrong-rows", peer, "the run's name is not made of what all have drawn for it")
        predicts = self._task == "predict"
        why = (self._plan.why_not_without if predicts else self._plan.why_not_go_on_without)(missing) if missing else ""
        if why or not self._is_sound(log) or (not predicts and set(log[-1].absent) != set(missing)):
            raise RemoteProtocolError("wrong-members", peer, why or "its log of members is not in order")
        if welcome.save == NEVER and self._standing.rounds:
            raise RemoteProtocolError("wrong-members", peer, "it begins anew, though a save that ends a round holds")
        if own_save(log, self._me, welcome.save) not in (NEVER, *self._standing.saves):
            raise RemoteProtocolError("wrong-members", peer, f"save {welcome.save} is none that we have whole")
