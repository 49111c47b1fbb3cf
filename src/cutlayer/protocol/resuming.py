"""Taking up a run: what a party has of it, from which save all can go on, and under which membership."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cutlayer.plan.membership import ALL, NEVER, Log, Start, own_save, until, with_absent
from cutlayer.protocol.messages import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a party has of a run, before it joins it.

    With `lasting` it keeps saves: then a lost peer does not end the run, which is taken up again from a save; `again`
    says that it is. `saves`: those it has whole. The rest is the conductor's: `committed` are those that all had,
    `rounds` says which of these end a round, and which; `log` is who took part so far; it does not wait for parties to
    do `without`. The run is `over` for these parties, with their rows, which may not all have heard so. `absent`: those
    that its predictions do without. `until`: the run ends with this save, so that a simulation can go on from there
    with other members.
    """

    lasting: bool = False
    again: bool = False
    saves: tuple[int, ...] = ()
    committed: tuple[int, ...] = ()
    rounds: Mapping[int, int] = field(default_factory=dict)
    log: Log = ALL
    without: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    until: int = NEVER
    over: Mapping[str, Rows] = field(default_factory=dict)
    opened: int = NEVER
    """The last round of which the party opened a sum under masks, if any,"""
    present: tuple[str, ...] = ()
    """and the clients of the run then: with others that round is not done again."""

    @property
    def newest(self) -> int:
        """The newest save that holds, if any."""
        return max(self.committed, default=NEVER)

    def start(self, saves: Mapping[str, Collection[int]], absent: Collection[str]) -> Start:
        """From where those that are there, with these saves, go on: the newest save that serves, or the beginning.

        Other parties than before can only be absent from a round on, so after a save that ends one.
        """
        for save in (*sorted(self.committed, reverse=True), NEVER):
            log = until(self.log, save)
            if set(log[-1].absent) != set(absent):
                if save != NEVER and save not in self.rounds:
                    continue
                log = with_absent(log, absent, after=save, from_round=self.rounds.get(save, NEVER) + 1)
            due = {party: own_save(log, party, save) for party in saves}
            if all(due[party] in (NEVER, *saves[party]) for party in saves):
                return Start(log, save, self.until)
        raise AssertionError("a run can always begin")
