"""One party's part in an alignment, after all are there: notes in, notes out. No sockets, no clock, no file.

A list goes round the ring of holders: its owner shuffles and masks it, each other holder masks it and shuffles it
anew, the comparer sees it masked by all. So nobody can tell whose id a point is, the comparer neither. It draws a
random code for each point; the codes go the same way back, each holder undoing its shuffle, and the comparer tells
each owner apart which codes, in which order, are common. Hashing and masking are done in parts, by `work`.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import sha256

import numpy as np

from cutlayer.data.align import (
    Bytes2d,
    Places,
    as_rows,
    check_points,
    common_places,
    draw_codes,
    hash_ids,
    mask,
    new_key,
    rows_of_codes,
    shuffled,
)
from cutlayer.data.ids import Ids
from cutlayer.errors import DataError, RemoteProtocolError, RunError
from cutlayer.party.alignment.lists import Rows
from cutlayer.protocol.aligning import (
    CODE_BYTES,
    KINDS,
    PART_ROWS,
    POINT_BYTES,
    AlignTerms,
    Codes,
    Commit,
    Note,
    Order,
    Points,
)


class Aligner:
    """One party's view, from the alignment's name (`run`) to the numbers of its common rows."""

    def __init__(self, party: str, terms: AlignTerms, run: str, ids: Ids | None, *, threads: int = 1) -> None:
        self.outbox: deque[tuple[str, Note, bytes | memoryview]] = deque()
        """Notes to be carried: to whom, what, and its points or codes."""
        self.sizes: dict[str, int] = {}
        self.rows: Places | None = None
        """`[common]`: this party's rows in the common order, -1 where it lacks one; None until it is known."""
        self.masked = 0
        """Points this party has masked so far, of `to_mask`."""
        self._party, self._terms, self._run, self._ids, self._threads = party, terms, run, ids, threads
        self._others = [name for name in dict.fromkeys((*terms.holders, terms.comparer)) if name != party]
        self._tasks: deque[Callable[[], None]] = deque()
        self._key = new_key()
        self._commits: dict[str, Commit] = {}
        self._digests = {name: sha256() for name in terms.holders}
        self._shuffles: dict[str, Places] = {}
        self._lists: dict[str, Rows] = {}
        self._finals: dict[str, Rows] = {}
        self._codes: dict[str, Rows] = {}
        self._order: Rows | None = None
        self._to_compare = terms.comparer == party
        self._released = False
        if ids is not None:
            self._begin(ids)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    @property
    def to_mask(self) -> int:
        return sum(self.sizes.values()) if self._ids is not None else 0

    @property
    def over(self) -> bool:
        """Whether this party has its rows, and has done all that others need of it."""
        done = not self._to_compare and not self._tasks and not self.outbox
        if self._ids is None:
            return done
        return done and self.rows is not None and all(self._came(self._codes, name) for name in self._terms.holders)

    def awaited(self) -> str:
        """Whose notes are missing, when there is nothing to do."""
        terms, me = self._terms, self._party
        missing = {name for name in terms.holders if name not in self._commits}
        if not missing and self._to_compare:
            missing = {terms.holder_before(name) for name in terms.holders if not self._came(self._finals, name)}
        if not missing and self._ids is not None:
            missing = {terms.holder_before(me)} - {me} if self._lists_missing() else {terms.comparer}
        return ", ".join(sorted(missing - {me})) or "the others"

    def work(self) -> None:
        """Do one part of what is to be done: about a second."""
        if self._tasks:
            self._tasks.popleft()()

    def feed(self, sender: str, note: Note, body: memoryview) -> None:
        """Take in a note. Raises `RemoteProtocolError` if it is out of turn, `RunError` if this cannot go on."""
        if isinstance(note, Commit):
            self._hear_commit(sender, note)
        elif isinstance(note, Points):
            self._hear_points(sender, note, body)
        elif isinstance(note, Codes):
            self._hear_codes(sender, note.owner, body)
        else:
            self._hear_order(sender, note, body)

    # ------------------------------------------------------------------ my own list

    def _begin(self, ids: Ids) -> None:
        mine = self._lists[self._party] = Rows(self._party, "its list", len(ids), POINT_BYTES)
        shuffle = self._shuffles[self._party] = shuffled(len(ids))
        self.sizes[self._party] = len(ids)
        for start in range(0, len(ids), PART_ROWS):
            self._tasks.append(partial(self._mask_own, ids, mine, shuffle, slice(start, start + PART_ROWS)))

    def _mask_own(self, ids: Ids, mine: Rows, shuffle: Places, place: slice) -> None:
        masked = mask(hash_ids(ids.canonical(shuffle[place]), self._run), self._key, self._threads)
        self._digests[self._party].update(masked.tobytes())
        self.masked += len(masked)
        if mine.put(place, masked):
            digest = self._digests[self._party].hexdigest()
            commit = Commit(self._run, len(ids), ids.kind, digest)
            for name in self._others:
                self._say(name, commit)
            self._commits[self._party] = commit
            self._release()

    def _hear_commit(self, sender: str, commit: Commit) -> None:
        if sender not in self._terms.holders or sender in self._commits or commit.run != self._run:
            raise RemoteProtocolError("commit", sender, "only a holder says how many ids it has, once, for this run")
        kinds = {self._party: self._ids.kind} if self._ids is not None else {}
        kinds |= {name: each.kind for name, each in self._commits.items()}
        for name, kind in kinds.items():
            if kind != commit.kind:
                raise RunError(
                    f"the ids of {name} are {KINDS[kind]} and those of {sender} are {KINDS[commit.kind]}, so none "
                    "would be common (7 is not '7'): write them alike, or both say --id-type text"
                )
        self._commits[sender], self.sizes[sender] = commit, commit.size
        self._release()

    def _release(self) -> None:
        """No list moves before all sets are committed to."""
        if len(self._commits) == len(self._terms.holders) and self._ids is not None and not self._released:
            self._released = True
            self._pass_on(self._party, self._lists[self._party].data)

    # ------------------------------------------------------------------ lists on their way round

    def _hear_points(self, sender: str, note: Points, body: memoryview) -> None:
        final = note.masks == len(self._terms.holders)
        if note.owner not in self._commits or not self._has_turn(sender, note):
            raise RemoteProtocolError("turns", sender, f"it sent a list of {note.owner} that is not its to send now")
        lists = self._finals if final else self._lists
        if (rows := lists.get(note.owner)) is None:
            size = self._commits[note.owner].size
            rows = lists[note.owner] = Rows(sender, f"the list of {note.owner}", size, POINT_BYTES)
        place = rows.take(body)
        if note.masks == 1:
            self._check_digest(sender, note.owner, body, last=place.stop == rows.count)
        self._tasks.append(partial(self._check if final else self._mask, sender, note.owner, rows, place, body))

    def _has_turn(self, sender: str, note: Points) -> bool:
        terms, me = self._terms, self._party
        if note.masks == len(terms.holders):
            return self._to_compare and sender == terms.holder_before(note.owner)
        if me not in self._commits or note.owner == me:  # the owner has waited for my commitment
            return False
        return sender == terms.holder_before(me) and note.masks == terms.masks(note.owner, me)

    def _check_digest(self, sender: str, owner: str, body: memoryview, *, last: bool) -> None:
        self._digests[owner].update(body)
        if last and self._digests[owner].hexdigest() != self._commits[owner].digest:
            raise RemoteProtocolError("commit", sender, "its list is not the one that it committed to")

    def _mask(self, sender: str, owner: str, rows: Rows, place: slice, body: memoryview) -> None:
        try:
            masked = mask(body, self._key, self._threads)
        except DataError as error:
            raise RemoteProtocolError("points", sender, f"in the list of {owner} {error}") from error
        self.masked += len(masked)
        if rows.put(place, masked):
            shuffle = self._shuffles[owner] = shuffled(len(rows.data))
            self._pass_on(owner, rows.data[shuffle])
            rows.drop()

    def _check(self, sender: str, owner: str, rows: Rows, place: slice, body: memoryview) -> None:
        try:
            check_points(body, self._threads)
        except DataError as error:
            raise RemoteProtocolError("points", sender, f"in the list of {owner} {error}") from error
        if rows.put(place, as_rows(body, POINT_BYTES)) and all(
            self._came(self._finals, name) for name in self._terms.holders
        ):
            self._compare()

    def _pass_on(self, owner: str, data: Bytes2d) -> None:
        masks = self._terms.masks(owner, self._party) + 1 if owner != self._party else 1
        last = masks == len(self._terms.holders)
        target = self._terms.comparer if last else self._terms.holder_after(self._party)
        self._say_parts(target, Points(owner, masks), data)

    # ------------------------------------------------------------------ comparing

    def _compare(self) -> None:
        terms = self._terms
        lists = {name: self._finals[name].data for name in terms.holders}
        try:
            places = common_places(lists, labels=terms.labels, at_least=terms.at_least)
        except DataError as error:
            raise RunError(f"{error}: an id stands there twice, or somebody changed the list on its way") from error
        for owner, common in places.items():
            codes = draw_codes(len(lists[owner]))
            if owner == self._party or not terms.at_least:
                # Who drew the codes must not know a row again that is not common; with a threshold those on the way
                # would see how many are.
                codes[np.setdiff1d(np.arange(len(codes)), common)] = 0
            order = np.zeros((len(common), CODE_BYTES), np.uint8)
            order[common >= 0] = codes[common[common >= 0]]
            self._say_parts(terms.holder_before(owner), Codes(owner), codes)
            self._say_parts(owner, Order(len(order)), order)
        self._finals = {}
        self._to_compare = False

    def _hear_codes(self, sender: str, owner: str, body: memoryview) -> None:
        terms, me = self._terms, self._party
        if owner not in self._shuffles or sender != self._codes_from(owner) or (owner == me and not self._released):
            raise RemoteProtocolError("turns", sender, f"it sent codes for {owner} that are not its to send now")
        if (codes := self._codes.get(owner)) is None:
            codes = self._codes[owner] = Rows(sender, f"the codes for {owner}", self._commits[owner].size, CODE_BYTES)
        if not codes.put(codes.take(body), as_rows(body, CODE_BYTES)):
            return
        undone = np.empty_like(codes.data)
        undone[self._shuffles[owner]] = codes.data
        if owner == me:
            codes.data = undone
            self._find_rows()
        else:
            codes.drop()
            self._say_parts(terms.holder_before(me), Codes(owner), undone)

    def _codes_from(self, owner: str) -> str:
        """Who sends me the codes for an owner's list: the comparer, if I was the last to mask it."""
        me, terms = self._party, self._terms
        return terms.comparer if owner == terms.holder_after(me) else terms.holder_after(me)

    def _hear_order(self, sender: str, note: Order, body: memoryview) -> None:
        if sender != self._terms.comparer or not self._released:
            raise RemoteProtocolError("turns", sender, "it sent a common order that is not its to send now")
        bound = self.sizes[self._terms.labels] if self._terms.at_least else min(self.sizes.values())
        if note.rows > bound or (self._order is not None and note.rows != self._order.count):
            raise RemoteProtocolError("sizes", sender, f"{note.rows:,} common rows are more than there can be")
        self._order = self._order or Rows(sender, "the common order", note.rows, CODE_BYTES)
        if self._order.put(self._order.take(body), as_rows(body, CODE_BYTES)):
            self._find_rows()

    def _find_rows(self) -> None:
        codes, order, comparer = self._codes.get(self._party), self._order, self._terms.comparer
        if codes is None or order is None or not (codes.full and order.full):
            return
        try:
            rows = rows_of_codes(order.data, codes.data)
        except DataError as error:
            raise RemoteProtocolError("codes", comparer, f"in the common order {error}") from error
        if (rows < 0).any() and (not self._terms.at_least or self._party == self._terms.labels):
            raise RemoteProtocolError("codes", comparer, f"its common order has rows that {self._party} does not hold")
        self.rows = rows

    # ------------------------------------------------------------------ small things

    def _came(self, lists: dict[str, Rows], owner: str) -> bool:
        return owner in lists and lists[owner].full

    def _lists_missing(self) -> bool:
        return len(self._shuffles) < len(self._terms.holders)

    def _say(self, target: str, note: Note, body: bytes | memoryview = b"") -> None:
        if target == self._party:
            self.feed(target, note, memoryview(body))
        else:
            self.outbox.append((target, note, body))

    def _say_parts(self, target: str, note: Note, data: Bytes2d) -> None:
        for start in range(0, max(1, len(data)), PART_ROWS):
            self._say(target, note, data[start : start + PART_ROWS].tobytes())
