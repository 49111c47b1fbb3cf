"""Break it on purpose: what goes wrong, at which party, and when, in one readable line.

    kill("server", ticket=57)                   before its 57th forward
    kill("a", save=2, at="commit", life=2)      in its second life, when its second save is to hold
    stop("b", ticket=3, at="backward", seconds=4)
    corrupt("a", frame=30)

A place is the n-th act of its kind in the process; acts are counted anew in each life of a party.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "drop", "delay", "duplicate", "reorder", "corrupt", "truncate"]
TICKET = ("load", "forward", "backward", "step")
"""What a party does to a ticket; a step ends some."""
SAVE = ("copy", "write", "written", "commit", "committed", "remove", "finish", "finished", "hello", "restore")
"""Stages of a save: its replicas are copied, its manifest gets its name, it is written, its mark gets its name, it
holds, a file of an older one is removed; the whole run is over, that is written; and of joining: the first word, the
save is taken up."""
SUM = ("opened",)
"""Of a sum under masks, where a plan has one: that it is opened is written, the key has not left."""
FRAME = "frame"
LINK_KINDS: tuple[Kind, ...] = ("drop", "delay", "duplicate", "reorder", "corrupt", "truncate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that goes wrong once, at the `number`-th act of a kind, in the `life`-th process of a party."""

    kind: Kind
    party: str
    at: str
    number: int
    life: int = 1
    seconds: float = 0.0
    """How long a process is stopped, or a frame delayed."""

    def __str__(self) -> str:
        place = "frame" if self.at == FRAME else "save" if self.at in (*SAVE, *SUM) else "ticket"
        at = "" if self.at == FRAME else f', at="{self.at}"'
        life = f", life={self.life}" if self.life > 1 else ""
        seconds = f", seconds={self.seconds:g}" if self.seconds else ""
        return f'{self.kind}("{self.party}", {place}={self.number}{at}{life}{seconds})'


def kill(party: str, *, ticket: int = 0, save: int = 0, at: str = "", life: int = 1) -> Fault:
    """SIGKILL: nothing of the process is left but its files."""
    return _at_an_act("kill", party, ticket, save, at, life)


def stop(party: str, *, ticket: int = 0, save: int = 0, at: str = "", life: int = 1, seconds: float = 1.0) -> Fault:
    """SIGSTOP, and SIGCONT after so many seconds: the process keeps all, its connections too, and does nothing."""
    return _at_an_act("stop", party, ticket, save, at, life, seconds)


def drop(party: str, *, frame: int, life: int = 1) -> Fault:
    """Its bytes never arrive; what is written after them does."""
    return Fault(kind="drop", party=party, at=FRAME, number=frame, life=life)


def delay(party: str, *, frame: int, life: int = 1, seconds: float = 0.5) -> Fault:
    """It leaves later, and so do all that follow."""
    return Fault(kind="delay", party=party, at=FRAME, number=frame, life=life, seconds=seconds)


def duplicate(party: str, *, frame: int, life: int = 1) -> Fault:
    """It leaves twice."""
    return Fault(kind="duplicate", party=party, at=FRAME, number=frame, life=life)


def reorder(party: str, *, frame: int, life: int = 1) -> Fault:
    """It leaves after the next one, if that comes soon."""
    return Fault(kind="reorder", party=party, at=FRAME, number=frame, life=life)


def corrupt(party: str, *, frame: int, life: int = 1) -> Fault:
    """One of its encrypted bytes is another one."""
    return Fault(kind="corrupt", party=party, at=FRAME, number=frame, life=life)


def truncate(party: str, *, frame: int, life: int = 1) -> Fault:
    """Half of its encrypted bytes leave; then the connection is closed."""
    return Fault(kind="truncate", party=party, at=FRAME, number=frame, life=life)


def _at_an_act(kind: Kind, party: str, ticket: int, save: int, at: str, life: int = 1, seconds: float = 0.0) -> Fault:
    known, first = (TICKET, "forward") if ticket else ((*SAVE, *SUM), "written")
    at = at or first
    if at not in known or bool(ticket) == bool(save):
        raise ValueError(f"name a ticket and one of {', '.join(TICKET)}, or a save and one of {', '.join(SAVE)}")
    return Fault(kind=kind, party=party, at=at, number=ticket or save, life=life, seconds=seconds)
