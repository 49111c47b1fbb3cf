"""Parties in processes of their own, over lanes with mTLS, kept alive from one run to the next (torch loads slowly)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import Dataset

from cutlayer.errors import CutlayerError
from cutlayer.keys import PublicKeys, load_credentials, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.network import Transport
from cutlayer.party.run import Network, run
from cutlayer.plan.terms import Terms
from equivalence.longhand import SECRETS
from equivalence.models import CASES, Case
from processes.forking import forking

ANSWER_S = 90.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a network of `equivalence.models`, the terms, and how many rows each client brings."""

    case: str
    terms: Terms
    rows: Mapping[str, int]
    held_out: int = 0
    transport: Transport = "lanes"

    def agreement(self) -> Agreement:
        return draft(self.terms, self.network.model())

    def data(self) -> dict[str, Dataset[Any]]:
        return {name: self.network.rows(count, seed) for seed, (name, count) in enumerate(self.rows.items())}

    @property
    def network(self) -> Case:
        return CASES[self.case]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a party has to show: its report, or the sentence it failed with."""

    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Crew:
    """One process for each party. `run` sends a job to all and returns their answers."""

    def __init__(self, folder: Path, parties: tuple[str, ...]) -> None:
        make_demo_kit(folder, parties)
        self._folder = folder
        context = forking()
        self._pipes: dict[str, Connection] = {}
        self._processes = []
        for party in parties:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(party, folder, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes[party] = ours
            self._processes.append(process)

    def pinned(self, job: Job) -> Job:
        """The job with the signing and sealing keys of this crew in its plan."""
        return pinned(job, self._folder)

    def run(self, job: Job) -> dict[str, Answer]:
        """Run the job at all its parties; the server first, since it has the port."""
        parties = list(job.terms.parties)
        server = job.terms.conductor or job.terms.filling("server")[0]
        self._pipes[server].send((job, 0))
        port = self._next(server)
        if isinstance(port, Answer):
            return {server: port}
        for party in parties:
            if party != server:
                self._pipes[party].send((job, port))
        return {party: self._next(party) for party in parties}

    def _next(self, party: str) -> Any:
        if not self._pipes[party].poll(ANSWER_S):
            raise TimeoutError(f"{party} did not answer within {ANSWER_S:g} s")
        return self._pipes[party].recv()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def pinned(job: Job, keys: Path) -> Job:
    """The job with the signing and sealing keys of a folder in its plan."""
    parties = {
        name: replace(terms, signing_key=public.signing, sealing_key=public.sealing)
        for name, terms in job.terms.parties.items()
        for public in [read_public_keys(keys / f"{name}.pub", name)]
    }
    return replace(job, terms=replace(job.terms, parties=parties))


def _work(party: str, folder: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            job, port = pipe.recv()
        except EOFError:
            return
        pipe.send(_run(party, folder, job, port, pipe))


def _run(party: str, folder: Path, job: Job, port: int, pipe: Connection) -> Answer:
    def notice(fact: Fact) -> None:
        if isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            pipe.send(int(fact.sentence.split()[-1]))

    keys = {
        name: PublicKeys(signing=terms.signing_key, sealing=terms.sealing_key)
        for name, terms in job.terms.parties.items()
    }
    network = Network(
        credentials=load_credentials(folder, party),
        seals=load_sealer(folder, party, keys) if keys[party].signing else None,
        listen=("127.0.0.1", 0),
        connect=("127.0.0.1", port),
        transport=job.transport,
    )
    try:
        outcome = run(
            job.agreement(), party, network, secret=SECRETS[party], data=job.data().get(party), observers=(notice,)
        )
    except CutlayerError as error:
        return Answer(error=f"{type(error).__name__}: {error}")
    return Answer(report=outcome.report())
