"""Which turns are still to be reported: to the conductor by all that take part, to a member by its losses' holder."""

from collections.abc import Mapping
from itertools import islice

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Predict, Turn
from cutlayer.plan.terms import TOGETHER
from cutlayer.protocol.messages import Report, is_sound
from cutlayer.protocol.route import parties_on_the_way
from cutlayer.protocol.traffic import Traffic
from cutlayer.protocol.turns import OpenTurn

Sums = Mapping[str, Mapping[str, float]]
"""By owner of the rows."""


class Reports:
    """The reports that party `me` is to hear, by turn."""

    def __init__(self, plan: Plan, me: str, traffic: Traffic) -> None:
        self._plan, self._me, self._traffic = plan, me, traffic
        self._conducts = plan.conductor == me
        self._prefixes = plan.score_prefixes
        self._told: dict[tuple[int, str], dict[str, Mapping[str, float]]] = {}
        """Conductor: what owners of rows will hear of a turn, by who holds the loss, until all have said it."""
        self.due: dict[int, OpenTurn] = {}
        """Turns with reports still due, oldest first."""

    def expect(self, turn: OpenTurn) -> None:
        """A turn is open: from now on its reports may come."""
        turn.unreported = self._of(turn.work)
        if turn.unreported:
            self.due[turn.number] = turn

    def received(self, peer: str, report: Report) -> OpenTurn:
        """The turn that a peer reports. Raises `RemoteProtocolError`."""
        turn = self.due.get(report.turn)
        if turn is None or peer not in turn.unreported:
            raise RemoteProtocolError("wrong-report", peer, f"turn {report.turn} was reported, or is not open")
        if report.sums.keys() != turn.unreported[peer]:
            detail = f"turn {turn.number}: others' losses, or not all of its own"
            raise RemoteProtocolError("wrong-report", peer, detail)
        if not all(map(is_sound, report.sums.values())):
            raise RemoteProtocolError("wrong-report", peer, f"turn {turn.number}: no loss has such sums")
        self._check_losses(turn, peer, report)
        self.close(turn, peer)
        return turn

    def _check_losses(self, turn: OpenTurn, peer: str, report: Report) -> None:
        """Those that the peer holds; from the conductor, all that others hold."""
        for owner, sums in report.sums.items():
            route = self._traffic.route(owner, turn.work.silent)
            holders = {peer} if self._conducts else set(route.party_of.values()) - {self._me}
            held = {self._prefixes[name] for name in route.losses if route.party_of[name] in holders}
            if {name[: name.rfind(".") + 1] for name in sums} != held:
                detail = f"turn {turn.number}: not the losses that it holds"
                raise RemoteProtocolError("wrong-report", peer, detail)

    def to_tell(self, turn: OpenTurn, holder: str, sums: Sums) -> dict[str, dict[str, float]]:
        """Conductor: what owners of rows are to hear, since all who hold losses of theirs have reported."""
        ready = {}
        for owner, own in sums.items():
            if owner in (self._me, holder) or owner == TOGETHER:
                continue
            told = self._told.setdefault((turn.number, owner), {})
            told[holder] = own
            if told.keys() == self._loss_holders(turn.work, owner) - {owner}:
                ready[owner] = {
                    name: value
                    for part in self._told.pop((turn.number, owner)).values()
                    for name, value in part.items()
                }
        return ready

    def late(self, passed_s: float, deadline_s: float) -> set[str]:
        """Conductor: the owners of rows whose turn has taken too long, now that so much time has passed.

        Where all clients share the server's replicas, later turns wait for the oldest: their time has not begun.
        """
        late: set[str] = set()
        for turn in islice(self.due.values(), 1 if self._plan.schedule.server_shared else None):
            turn.age_s += passed_s
            if turn.age_s > deadline_s:
                there = {party for party in turn.unreported if party in self._plan.clients}
                late |= (self._traffic.awaited(turn) & there) or there
        return late

    def close(self, turn: OpenTurn, party: str) -> None:
        """A party has reported a turn; after the last one the turn is over."""
        del turn.unreported[party]
        if not turn.unreported:
            del self.due[turn.number]

    def _of(self, work: Turn) -> dict[str, set[str]]:
        """Whose reports of a turn I am to hear, and the owners of the rows whose losses each will tell.

        An owner hears of losses that others hold from the conductor. Where rows are several parties', they do not.
        """
        if not self._conducts:
            elsewhere = self._me in work.parties and self._loss_holders(work, self._me) - {self._me}
            return {self._plan.conductor: {self._me}} if elsewhere else {}
        on_the_way = parties_on_the_way(self._plan, work.parties, work.silent)
        reports: dict[str, set[str]] = {party: set() for party in on_the_way}
        for owner in work.parties:
            for holder in self._loss_holders(work, owner):
                reports[holder].add(owner)
        return reports

    def _loss_holders(self, work: Turn, owner: str) -> set[str]:
        """Who will tell losses on an owner's rows."""
        if isinstance(work, Predict):
            return set()
        route = self._traffic.route(owner, work.silent)
        return {route.party_of[name] for name in route.losses}
