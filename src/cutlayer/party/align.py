"""Private alignment: the parties find the rows that all hold, in one order, and show each other none of the rest.

`align` is one party over a network, `align_together` all of them in this process. See docs/alignment.md.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutlayer.data.align import Places
from cutlayer.data.ids import Ids, ids_of, write_rows
from cutlayer.observe.facts import Noticed, Observer
from cutlayer.party.alignment.desk import Desk, Progress
from cutlayer.party.alignment.star import Circle, Seat
from cutlayer.party.run import Network, address_of
from cutlayer.party.sealed import Unsealed
from cutlayer.plan.plan import Plan
from cutlayer.protocol.aligning import AlignTerms
from cutlayer.protocol.wire import Frame
from cutlayer.transport.dialler import dial
from cutlayer.transport.listener import Listener


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Alignment:
    """What one party has in the end. `rows` `[common]` are its rows, -1 where it lacks one; None if it has no table."""

    party: str
    circle: Circle
    run: str
    sizes: dict[str, int]
    rows: Places | None
    seconds: float

    def write(self, path: Path, ids: Ids) -> None:
        """The file `id, row`, in the common order. Raises `DataError`."""
        assert self.rows is not None
        terms = self.circle.terms
        told = {"plan": self.circle.plan, "run": self.run, "party": self.party, "parties": ",".join(terms.holders)}
        told |= {"comparer": terms.comparer, "labels": terms.labels, "at_least": str(terms.at_least)}
        write_rows(path, ids, self.rows, {f"cutlayer.align.{name}": text for name, text in told.items()})


def align(
    plan: Plan,
    party: str,
    circle: Circle,
    ids: Ids | None,
    network: Network,
    *,
    observer: Observer = lambda fact: None,
    progress: Progress = lambda done, total: None,
) -> Alignment:
    """Take part as one party; parties may start in any order. Raises `CutlayerError`, and has then shown no result."""
    start, limits, server = time.perf_counter(), plan.terms.limits, circle.conductor
    seat = Seat(party, circle, ids, network.seals, threads=os.cpu_count() or 1)
    desk = Desk(seat, join_s=limits.join_timeout_s, answer_s=limits.progress_timeout_s, progress=progress)
    common: dict[str, Any] = {
        "party": party,
        "limits": limits,
        "pins": plan.terms.pins,
        "insecure_plaintext_on_loopback": network.insecure_plaintext_on_loopback,
    }
    given = network.listen if seat.conducts else network.connect
    address = given or address_of(plan.terms.parties[server].address, server)
    if seat.conducts:
        listener = Listener(address, network.credentials, allowed=seat.peers, on_refused=desk.refused, **common)
        observer(Noticed(party=party, sentence=f"{party} listens on port {listener.port}"))
        desk.run(listener, observer)
    else:
        observer(Noticed(party=party, sentence=f"{party} dials {server} at {address[0]}:{address[1]}"))
        desk.add(dial(address, network.credentials, peer=server, **common))
        desk.run(None, observer)
    aligner = seat.aligner
    return Alignment(
        party=party,
        circle=circle,
        run=seat.run,
        sizes=dict(aligner.sizes) if aligner else {},
        rows=aligner.rows if aligner else None,
        seconds=time.perf_counter() - start,
    )


def align_together(
    tables: Mapping[str, Sequence[int | str]],
    *,
    labels: str = "",
    at_least: int = 0,
    comparer: str = "",
    conductor: str = "",
    tap: Callable[[str, str, Frame], None] = lambda sender, receiver, frame: None,
) -> dict[str, Places]:
    """Row numbers in the common order, by party: all parties in this process, by the same steps as over a network.

    The conductor, by default the first party, need not have a table. `tap` sees each frame that crosses.

    >>> together = align_together({"a": [5, 6, 7], "b": [7, 5]})
    >>> sorted(zip(together["a"].tolist(), together["b"].tolist()))
    [(0, 1), (2, 0)]
    """
    ring = tuple(tables)
    terms = AlignTerms(holders=ring, comparer=comparer or ring[0], labels=labels, at_least=at_least)
    circle = Circle(plan="", conductor=conductor or ring[0], terms=terms)
    ids = {name: ids_of(values, where=name) for name, values in tables.items()}
    seats = {name: Seat(name, circle, ids.get(name), Unsealed()) for name in circle.parties}
    carry_all(seats, tap)
    return {name: rows for name in tables if (aligner := seats[name].aligner) and (rows := aligner.rows) is not None}


def carry_all(
    seats: Mapping[str, Seat], tap: Callable[[str, str, Frame], None] = lambda sender, receiver, frame: None
) -> None:
    """Carry letters between these seats, and let them work, until nobody has anything left to do."""
    moving = True
    while moving:
        moving = False
        for name, seat in seats.items():
            while seat.letters:
                peer, frame = seat.letters.popleft()
                received = Frame(frame.header, (memoryview(b"".join(frame.parts)),))
                tap(name, peer, received)
                seats[peer].feed(name, received)
                moving = True
            if seat.busy:
                seat.work()
                moving = True
