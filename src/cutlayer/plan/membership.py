"""Who takes part from which round on, where a plan can do without some: an agreed log, that a run can be replayed by.

Parties leave and return at saves that end a round, and nowhere else. So the schedule stays a pure function, of the
plan and of this log, and what a lost party had begun is dropped as a whole.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

NEVER = -1
"""The number of no save: a run's beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """From `round` on, and after the save numbered `after`, these parties are `absent`; those `returned` were before.

    The next membership takes its place.
    """

    after: int = NEVER
    round: int = 0
    absent: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()


Log = tuple[Membership, ...]
"""From the oldest on; the first begins with the run, and nobody is absent from it unless nobody waited."""

ALL: Log = (Membership(),)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins, or is taken up: under the last membership of a log, from a save on; `until` another one."""

    log: Log = ALL
    save: int = NEVER
    until: int = NEVER


def until(log: Sequence[Membership], save: int) -> Log:
    """What holds when a run is taken up from a save: later memberships are as if they had never been."""
    return tuple(each for each in log if each.after <= save) or ALL


def covering(log: Sequence[Membership], save: int) -> Membership:
    """The membership under which a save was made."""
    return next((each for each in reversed(log) if each.after < save), log[0])


def with_absent(log: Log, absent: Collection[str], *, after: int, from_round: int) -> Log:
    """The log with a new membership: who is absent from the round that follows a save."""
    earlier = tuple(each for each in log if each.after < after)
    before = earlier[-1].absent if earlier else ()
    new = Membership(
        after=after,
        round=from_round,
        absent=tuple(absent),
        returned=tuple(party for party in before if party not in absent),
    )
    return (*earlier, new)


def own_save(log: Sequence[Membership], party: str, save: int) -> int:
    """The save from which a party goes on when all others do from `save`: its own last before it was absent."""
    while save > NEVER and party in covering(log, save).absent:
        save = covering(log, save).after
    return save
