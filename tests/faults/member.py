"""One party in a process of its own, with its faults; what befalls it goes to whoever started it, by a pipe."""

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cutlayer.errors import CutlayerError
from cutlayer.keys import PublicKeys, load_credentials, load_sealer
from cutlayer.observe.facts import Fact, Noticed, Progressed, Resumed, Saved
from cutlayer.party.party import Party
from cutlayer.party.run import Network, Outcome, Saves, run
from equivalence.longhand import SECRETS
from faults.faults import Fault
from faults.strikes import Strikes, apply
from processes.crew import Job

LISTENS = "listens on port"
Told = tuple[float, str, Any]
"""When, what kind of news, and the news."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """What a process is started with: the same in each life, but for the faults."""

    party: str
    job: Job
    keys: Path
    folder: Path
    port: int
    faults: tuple[Fault, ...] = ()
    pause_s: float = 0.0
    """After each step, so that a run lasts long enough for somebody to come back to it."""


def work(errand: Errand, pipe: Connection) -> None:
    """Take part in the run, and tell what comes of it."""
    torch.set_num_threads(1)
    lock = threading.Lock()

    def tell(kind: str, news: Any) -> None:
        with lock:
            pipe.send((time.time(), kind, news))

    _show_state_when_asked(errand)
    strikes = Strikes(errand.faults, lambda fault: pipe.send((time.time(), "fault", fault)), lock)
    apply(strikes)
    try:
        outcome = _run(errand, lambda fact: _observe(fact, tell, errand.pause_s))
    except CutlayerError as error:
        tell("failed", f"{type(error).__name__}: {error}")
    except BaseException:
        tell("failed", traceback.format_exc())
    else:
        tell("acts", dict(strikes.done))
        tell("log", outcome.party.session.start.log)
        tell("report", outcome.report())


def _run(errand: Errand, observer: Callable[[Fact], None]) -> Outcome:
    parties, party = errand.job.terms.parties, errand.party
    keys = {name: PublicKeys(signing=own.signing_key, sealing=own.sealing_key) for name, own in parties.items()}
    network = Network(
        credentials=load_credentials(errand.keys, party),
        seals=load_sealer(errand.keys, party, keys),
        listen=("127.0.0.1", errand.port),
        connect=("127.0.0.1", errand.port),
    )
    return run(
        errand.job.agreement(),
        party,
        network,
        secret=SECRETS[party],
        data=errand.job.data().get(party),
        observers=(observer,),
        saves=Saves(place=errand.folder / party),
    )


def _observe(fact: Fact, tell: Callable[[str, Any], None], pause_s: float) -> None:
    match fact:
        case Noticed():
            tell("noticed", fact.sentence)
            if LISTENS in fact.sentence:
                tell("port", int(fact.sentence.split()[-1]))
        case Resumed():
            tell("resumed", (fact.save, fact.absent, fact.returned))
        case Saved():
            tell("saved", fact.number)
        case Progressed():
            tell("progressed", fact.done)
            time.sleep(pause_s)


def _show_state_when_asked(errand: Errand) -> None:
    """At SIGUSR1 write what this party waits for, and where its threads are."""
    parties: list[Party] = []
    made = Party.__init__

    def make(self: Party, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        parties[:] = [self]

    def show(*_: object) -> None:
        lines = [f"{errand.party} waits for {party.session.waiting_for()}, {party.session.states}" for party in parties]
        for frame in sys._current_frames().values():
            lines.append("".join(traceback.format_stack(frame)[-4:]))
        (errand.folder / f"{errand.party}.state").write_text("\n".join(lines))

    Party.__init__ = make  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, show)
