"""Do the audit logs of several parties agree? What one says came must be, in order, what the other says it sent."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cutlayer.errors import RunError
from cutlayer.observe.chain import SEAL_EVERY, Fields
from cutlayer.observe.trail import Trail

_OWN = ("n", "at", "entry", "before", "peer", "run")
"""What each end's line says for itself."""


@dataclass(kw_only=True, slots=True)
class Pair:
    """What two logs say of the messages from one party to another in a run."""

    run: str
    sender: str
    receiver: str
    sent: int
    came: int
    lost: int = 0
    """Sent, and not in the receiver's log: on their way when a link broke or a process died."""
    faults: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def compare(trails: Sequence[Trail]) -> list[Pair]:
    """What the logs of several parties say of each other's messages. Raises `RunError` for two of one party."""
    by_party: dict[str, Trail] = {}
    for trail in trails:
        if trail.party in by_party:
            raise RunError(f"{by_party[trail.party].name} and {trail.name} are both {trail.party}'s: give one of them")
        by_party[trail.party] = trail
    keys = dict.fromkeys(key for trail in trails for key in trail.crossed)
    both = (key for key in keys if key[1] in by_party and key[2] in by_party)
    return [_Comparison(by_party[key[1]], by_party[key[2]], key).made() for key in both]


class _Comparison:
    """Goes through what came, and finds each message in what was sent, in the same order."""

    def __init__(self, sender: Trail, receiver: Trail, key: tuple[str, str, str]) -> None:
        self._from, self._to = sender, receiver
        self._sent = sender.crossed.get(key, [])
        self._came = receiver.crossed.get(key, [])
        self._places: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, (_, fields) in enumerate(self._sent):
            self._places[_identity(fields)].append(place)
        self._next, self._last_came, self._unlogged = 0, 0, 0
        run, source, target = key
        self._pair = Pair(run=run, sender=source, receiver=target, sent=len(self._sent), came=len(self._came))

    def made(self) -> Pair:
        for line, fields in self._came:
            self._find(line, fields)
        if left := len(self._sent) - self._next:
            self._pair.lost += left
        if lost := self._pair.lost:
            self._notice(f"{lost} message(s) that {self._pair.sender} sent are not in {self._to.name}: never arrived")
        if self._unlogged:
            self._notice(
                f"{self._unlogged} message(s) that came from {self._pair.sender} are not in {self._from.name}: they "
                "were sent just before its process was killed"
            )
        return self._pair

    def _find(self, line: int, fields: Fields) -> None:
        place = self._place(fields)
        if place is None or self._is_of_another_life(place, line):
            self._not_sent(line, fields)
            return
        at, said = self._sent[place]
        for name in _differences(said, fields):
            self._fault(
                f"{self._from.name} line {at} and {self._to.name} line {line} differ in {name}: "
                f"{said.get(name)!r} was sent, {fields.get(name)!r} came"
            )
        self._pass_over(place, line)
        self._next, self._last_came = place + 1, line

    def _place(self, fields: Fields) -> int | None:
        """The next of the messages sent that is this one: to the last field, or else by its name."""
        places = self._places[_identity(fields)]
        ahead = places[bisect_left(places, self._next) :]
        same = (place for place in ahead if not any(_differences(self._sent[place][1], fields)))
        return next(same, ahead[0] if ahead else None)

    def _is_of_another_life(self, place: int, line: int) -> bool:
        """Whether the sender was killed before it sent this, but the receiver had not taken up the run again."""
        began = self._sent[self._next - 1][0] if self._next else 0
        died = _any_between(self._from.breaks, began, self._sent[place][0])
        return died and not _any_between(self._to.stops, self._last_came, line)

    def _pass_over(self, place: int, line: int) -> None:
        """Messages sent before this one that did not come. On one link a later one does not overtake them."""
        skipped = self._sent[self._next : place]
        if not skipped:
            return
        began = self._sent[self._next - 1][0] if self._next else 0
        if _any_between(self._from.stops, began, self._sent[place][0]) or _any_between(
            self._to.stops, self._last_came, line
        ):
            self._pair.lost += len(skipped)
            return
        for at, fields in skipped:
            self._fault(
                f"{self._from.name} line {at}: {_named(fields)} was sent, and later ones came, but {self._to.name} "
                "leaves it out"
            )

    def _not_sent(self, line: int, fields: Fields) -> None:
        after = self._sent[self._next - 1][0] if self._next else 0
        until = self._sent[self._next][0] if self._next < len(self._sent) else self._from.lines + 1
        where = f"{self._to.name} line {line}: {_named(fields)} came from {self._pair.sender}"
        if _any_between(self._from.breaks, after, until) and self._unlogged < SEAL_EVERY:
            self._unlogged += 1
        elif self._places[_identity(fields)]:
            self._fault(f"{where} again, or out of order")
        else:
            self._fault(f"{where}, but {self._from.name} does not have it")

    def _fault(self, sentence: str) -> None:
        self._pair.faults.append(sentence)

    def _notice(self, sentence: str) -> None:
        self._pair.notices.append(f"run {self._pair.run[:8]}: {sentence}")


def _identity(fields: Fields) -> tuple[object, ...]:
    return tuple(str(fields.get(name)) for name in ("edge", "way", "ticket", "state", "number"))


def _differences(sent: Fields, came: Fields) -> Iterator[str]:
    names = dict.fromkeys((*sent, *came))
    return (name for name in names if name not in _OWN and sent.get(name) != came.get(name))


def _named(fields: Fields) -> str:
    if "state" in fields:
        return f"the {fields['state']} number {fields.get('number')}"
    return f"{fields.get('edge')} {fields.get('way')} of {fields.get('ticket')}"


def _any_between(lines: Sequence[int], after: int, until: int) -> bool:
    place = bisect_left(lines, after + 1)
    return place < len(lines) and lines[place] <= until
