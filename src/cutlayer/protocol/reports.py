"""Which turns are still to be reported: to the conductor by all that take part, to a member by its losses' holder."""

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Turn
from cutlayer.protocol.messages import Report, is_sound
from cutlayer.protocol.route import parties_on_the_way
from cutlayer.protocol.traffic import Traffic
from cutlayer.protocol.turns import OpenTurn


class Reports:
    """The reports that party `me` is to hear, by turn."""

    def __init__(self, plan: Plan, me: str, traffic: Traffic) -> None:
        self._plan, self._me, self._traffic = plan, me, traffic
        self._conducts = plan.conductor == me
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
        self.close(turn, peer)
        return turn

    def close(self, turn: OpenTurn, party: str) -> None:
        """A party has reported a turn; after the last one the turn is over."""
        del turn.unreported[party]
        if not turn.unreported:
            del self.due[turn.number]

    def _of(self, work: Turn) -> dict[str, set[str]]:
        """Whose reports of a turn I am to hear, and the owners of the rows whose losses each will tell."""
        if not self._conducts:
            holders = self._loss_holders(self._me) - {self._me} if self._me in work.parties else ()
            return {holder: {self._me} for holder in holders}
        reports: dict[str, set[str]] = {party: set() for party in parties_on_the_way(self._plan, work.parties)}
        for owner in work.parties:
            for holder in self._loss_holders(owner):
                reports[holder].add(owner)
        return reports

    def _loss_holders(self, owner: str) -> set[str]:
        route = self._traffic.route(owner)
        return {route.party_of[name] for name in route.losses}
