"""The audit log: what left a party and what came to it, a line each, and never what was in it.

To the entries of `chain` it adds:

    sent, came   a message with tensors, or a state: run, edge, way and ticket, shapes, bytes, codec, defence, digest
    resumed      the run begins, or goes on, from a save: tickets since then are seen again

The digest is of the payload as it crossed, after its codec, and equal at both ends.
"""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cutlayer.errors import RunError
from cutlayer.observe.chain import Chain, Sign, now
from cutlayer.observe.facts import Crossed, Fact, Moved, Resumed, Stop


class Audit:
    """An observer that keeps one party's log: of the facts told to it, those of `party` that say what crossed.

    A party with an audit among its observers digests all payloads. An older log is continued. If the log cannot be
    written, the run ends. `plan` is the plan's digest. Without `sign` a log shows what was damaged or differs from
    other parties' logs, and not what its keeper has changed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        party: str,
        plan: str = "",
        sign: Sign | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """Raises `RunError` if the file cannot be written, or is not the undamaged log of this party."""
        self.party = party
        self._keeping = threading.Lock()
        self._stop: Stop | None = None
        self._closed = False
        try:
            self._chain = Chain(Path(path), party, plan, sign, clock)
        except OSError as error:
            raise RunError(f"{self._failed(error)}: make room for {path}, or name another file") from error

    def __call__(self, fact: Fact) -> Stop | None:
        if fact.party != self.party or not isinstance(fact, Crossed | Moved | Resumed):
            return None
        with self._keeping:
            try:
                if self._stop is None:
                    self._keep(fact)
            except OSError as error:
                self._stop = Stop(reason=self._failed(error))
            return self._stop

    def close(self) -> None:
        """Sign what there is, and end. Raises `RunError` if it cannot be written. A second time it does nothing."""
        with self._keeping:
            if self._closed:
                return
            self._closed = True
            try:
                self._chain.close()
            except OSError as error:
                where = self._chain.path
                raise RunError(f"{self._failed(error)}: what {where} has of the run is not complete") from error

    def _keep(self, fact: Crossed | Moved | Resumed) -> None:
        match fact:
            case Crossed():
                self._chain.add("sent" if fact.sent else "came", **_crossing(fact))
            case Moved():
                self._chain.add("sent" if fact.sent else "came", **_moving(fact))
            case Resumed():
                self._chain.add("resumed", save=fact.save, absent=fact.absent)

    def _failed(self, error: OSError) -> str:
        """Peers are told this, too: it has no path in it."""
        return f"{self.party} cannot write its audit log ({error.strerror}), and does not go on without it"


def _crossing(fact: Crossed) -> dict[str, Any]:
    assert fact.digest, "a party's audit is among its observers from the start"
    return {
        "peer": fact.peer,
        "run": fact.run,
        "edge": fact.edge,
        "way": fact.way,
        "ticket": str(fact.ticket),
        "carries": fact.carries or ("activation" if fact.way == "forward" else "gradient"),
        "shapes": [str(shape) for shape in fact.shapes],
        "bytes": fact.payload_bytes,
        "codec": fact.codec,
        "defence": fact.defence,
        "digest": fact.digest,
    }


def _moving(fact: Moved) -> dict[str, Any]:
    assert fact.digest, "a party's audit is among its observers from the start"
    return {
        "peer": fact.target if fact.sent else fact.source,
        "run": fact.run,
        "state": fact.what,
        "number": fact.number,
        "of": fact.of,
        "sealed": fact.sealed,
        "digest": fact.digest,
    }
