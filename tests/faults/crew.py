"""Starts the parties of a run, starts those again that were killed, and sees that it comes to an end."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cutlayer.keys import make_demo_kit
from faults.faults import Fault
from faults.member import Errand, Told, work
from processes.crew import Job, pinned
from processes.forking import forking

DEADLINE_S = 100.0
"""A run that has not ended by then hangs."""
NEVER = float("inf")
SHOWN_S = 1.0
PORT_S = 60.0

_context = forking()


class HangError(AssertionError):
    """A run has not ended; with what each party said and waits for."""


@dataclass(kw_only=True)
class Member:
    """What became of a party, over all its lives."""

    errand: Errand
    told: list[Told] = field(default_factory=list)
    lives: int = 0
    process: BaseProcess | None = None
    pipe: Connection | None = None
    back_at: float = 0.0
    """When it is started again; 0 while it lives, or is over."""
    awake_at: float = 0.0
    """When it goes on, if it was stopped."""

    def news(self, kind: str) -> list[Any]:
        """All that was told of a kind."""
        return [what for _, about, what in self.told if about == kind]

    @property
    def report(self) -> dict[str, Any]:
        """What it has to show; nothing if it did not come to the end."""
        return next(iter(self.news("report")), {})

    @property
    def failures(self) -> list[str]:
        """What it ended with otherwise, in any life."""
        return self.news("failed")

    def story(self, began: float) -> str:
        """All it told, a line each, for whoever looks for the cause."""
        dull = {"progressed", "report", "port", "acts"}
        return "\n".join(
            f"  {at - began:7.2f} {self.errand.party:10} {kind}: {what}"
            for at, kind, what in self.told
            if kind not in dull
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all parties, and when the run began."""

    members: Mapping[str, Member]
    began: float
    seconds: float

    @property
    def struck(self) -> list[tuple[float, Fault]]:
        """The faults that struck, and when."""
        return sorted(
            ((at, what) for m in self.members.values() for at, kind, what in m.told if kind == "fault"),
            key=lambda each: each[0],
        )

    def story(self) -> str:
        """All that was told, by party."""
        return "\n".join(member.story(self.began) for member in self.members.values())

    def back_after_s(self, struck_at: float, fault: Fault, conductor: str) -> float | None:
        """How long until the party that was struck trained on, or the conductor if it has no more to train."""
        for party in (fault.party, conductor):
            told = [each for each in self.members[party].told if each[0] > struck_at]
            taken_up = next((at for at, kind, _ in told if kind == "resumed"), struck_at)
            for at, kind, _ in told:
                if kind == "progressed" and at >= taken_up:
                    return at - struck_at
        return None


class Crew:
    """Keys for these parties, and a folder for their saves."""

    def __init__(self, folder: Path, parties: Sequence[str]) -> None:
        self._folder, self._keys = folder, folder / "keys"
        self._keys.mkdir(parents=True)
        make_demo_kit(self._keys, tuple(parties))

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def pinned(self, job: Job) -> Job:
        """The job with the signing and sealing keys of this crew in its plan."""
        return pinned(job, self._keys)

    def run(
        self,
        job: Job,
        *faults: Fault,
        back_after_s: Mapping[str, float] | None = None,
        pause_s: float = 0.0,
        dialled: Callable[[int], int] = int,
    ) -> Outcome:
        """The run, with these faults, until all have ended. Who is killed is started again at once, or `back_after_s`.

        The server pauses after each step. `dialled`: the port that others dial, given the server's.

        Raises `HangError`.
        """
        folder = self._folder / "saves"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        watch = _Watch(job, self._keys, folder, faults, back_after_s or {})
        try:
            return watch.run(pause_s, dialled)
        finally:
            watch.end()
            shutil.rmtree(folder, ignore_errors=True)


class _Watch:
    """One run."""

    def __init__(
        self, job: Job, keys: Path, folder: Path, faults: Sequence[Fault], back_after_s: Mapping[str, float]
    ) -> None:
        self._faults, self._back_after_s, self._folder = faults, back_after_s, folder
        self._began = time.time()
        self._server = job.terms.conductor or job.terms.filling("server")[0]
        self._members = {
            party: Member(errand=Errand(party=party, job=job, keys=keys, folder=folder, port=0))
            for party in job.terms.parties
        }

    def run(self, pause_s: float, dialled: Callable[[int], int]) -> Outcome:
        server = self._members[self._server]
        server.errand = replace(server.errand, pause_s=pause_s)
        self._start(server)
        self._until(lambda: bool(server.news("port") or server.failures), PORT_S)
        if server.failures:
            raise AssertionError(f"{self._server} did not begin: {server.failures[0]}")
        port = server.news("port")[0]
        server.errand, elsewhere = replace(server.errand, port=port), dialled(port)
        for member in self._members.values():
            if member is not server:
                member.errand = replace(member.errand, port=elsewhere)
                self._start(member)
        self._until(
            lambda: all(m.process is None and m.back_at in (0.0, NEVER) for m in self._members.values()), DEADLINE_S
        )
        return Outcome(members=self._members, began=self._began, seconds=time.time() - self._began)

    def _until(self, is_over: Any, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while not is_over():
            pipes = [m.pipe for m in self._members.values() if m.pipe is not None]
            ready = wait(pipes, 0.05)
            for member in self._members.values():
                if member.pipe in ready:
                    self._hear(member)
                self._look_after(member)
            if time.monotonic() > deadline:
                raise HangError(self._state())

    def _start(self, member: Member) -> None:
        member.lives += 1
        own = tuple(f for f in self._faults if f.party == member.errand.party and f.life == member.lives)
        ours, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=work, args=(replace(member.errand, faults=own), theirs), daemon=True)
        process.start()
        theirs.close()
        member.process, member.pipe, member.back_at = process, ours, 0.0

    def _hear(self, member: Member) -> None:
        """The next news; or the end of the process, when nothing more can come."""
        assert member.pipe is not None
        try:
            news = member.pipe.recv()
        except EOFError:
            self._ended(member)
            return
        member.told.append(news)
        if news[1] == "fault" and news[2].kind == "stop":
            member.awake_at = time.time() + news[2].seconds

    def _ended(self, member: Member) -> None:
        assert member.process is not None
        assert member.pipe is not None
        member.process.join()
        killed = member.process.exitcode == -signal.SIGKILL
        member.process.close()
        member.pipe.close()
        member.process = member.pipe = None
        member.told.append((time.time(), "ended", "killed" if killed else "by itself"))
        if killed:
            member.back_at = time.time() + self._back_after_s.get(member.errand.party, 0.0)

    def _look_after(self, member: Member) -> None:
        now = time.time()
        if member.back_at and now >= member.back_at:
            self._start(member)
        if member.awake_at and now >= member.awake_at:
            member.awake_at = 0.0
            if member.process is not None and member.process.pid is not None:
                os.kill(member.process.pid, signal.SIGCONT)

    def _state(self) -> str:
        alive = [m for m in self._members.values() if m.process is not None and m.process.pid is not None]
        for member in alive:
            assert member.process is not None
            assert member.process.pid is not None
            os.kill(member.process.pid, signal.SIGCONT)
            os.kill(member.process.pid, signal.SIGUSR1)
        time.sleep(SHOWN_S)
        states = [path.read_text() for path in sorted(self._folder.glob("*.state"))]
        stories = [member.story(self._began) for member in self._members.values()]
        living = ", ".join(member.errand.party for member in alive)
        return "\n".join([f"it hangs; still there: {living}", *map(str, self._faults), *stories, *states])

    def end(self) -> None:
        """Nobody is left."""
        for member in self._members.values():
            if member.process is not None:
                member.process.kill()
                member.process.join()
                member.process.close()
            if member.pipe is not None:
                member.pipe.close()
