"""`cutlayer run` and `cutlayer simulate`: one party over a network; all parties in this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cutlayer.errors import PlanError
from cutlayer.observe.facts import (
    Alarmed,
    Fact,
    Leaked,
    Noticed,
    Paced,
    Progressed,
    Resumed,
    Saved,
    Scored,
    TurnedDown,
)
from cutlayer.observe.lines import to_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.data import Dataset

    from cutlayer.data.encoding import Encoding
    from cutlayer.observe.audit import Audit
    from cutlayer.observe.facts import Observer
    from cutlayer.observe.monitor import Monitor
    from cutlayer.party.agreement import Agreement
    from cutlayer.party.local import PartyFile
    from cutlayer.party.run import Network
    from cutlayer.plan.plan import Plan
    from cutlayer.plan.terms import Terms

PlanPath = Annotated[Path, typer.Argument(help="The plan, with its model and weights beside it.")]
PartyPath = Annotated[Path | None, typer.Option("--party-file", help="The party's own file; by default NAME.toml.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write metrics, bytes, times, versions, digests here.")]


def run(  # noqa: PLR0913 (each option overrides one line of the party's file)
    plan: PlanPath = Path("plan.toml"),
    *,
    party: Annotated[str, typer.Option("--as", help="Which party of the plan this is.")],
    own_file: Annotated[
        Path | None, typer.Option("--party-file", help="The party's own file; by default NAME.toml.")
    ] = None,
    data: Annotated[str, typer.Option(help="rows.csv, rows.npz, or package.module:factory.")] = "",
    held_out: Annotated[str, typer.Option(help="Rows to evaluate on, instead of a part of the data.")] = "",
    label: Annotated[str, typer.Option(help="The table's column of labels.")] = "",
    keys: Annotated[str, typer.Option(help="The party's folder of keys.")] = "",
    listen: Annotated[str, typer.Option(help="Server: HOST:PORT to listen on, instead of the plan's.")] = "",
    connect: Annotated[str, typer.Option(help="Client: HOST:PORT to dial, instead of the plan's.")] = "",
    out: Annotated[str, typer.Option(help="Folder for this party's trained weights.")] = "",
    device: Annotated[str, typer.Option(help="A torch device, such as cuda.")] = "",
    threads: Annotated[int, typer.Option(help="Threads for torch; 0 leaves its default.")] = 0,
    json_file: JsonFile = None,
    facts: Annotated[bool, typer.Option("--facts", help="Print facts as JSON lines instead of progress.")] = False,
    saves: Annotated[str, typer.Option(help="Folder or fsspec URL for the run's saves; by default in --out.")] = "",
    anew: Annotated[bool, typer.Option("--anew", help="Forget the saves that are there, and begin anew.")] = False,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Measure what this party's tensors tell while it runs; raise alarms.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep this party's rows and what it sent of them here: see `cutlayer attack`."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure-plaintext-on-loopback", help="NO encryption, NO identities; loopback only.")
    ] = False,
) -> None:
    """Take part in a run as one party. Parties may start in any order.

    The same command brings a party that was stopped, or killed, back to the run.
    """
    from cutlayer.party.local import DenyList
    from cutlayer.party.memory import keep_freed_memory
    from cutlayer.party.run import Saves
    from cutlayer.party.run import run as run_party
    from cutlayer.studies.recording import Recorder

    here = party_file(
        plan,
        party,
        own_file,
        {"data": data, "held_out": held_out, "label": label, "keys": keys, "listen": listen, "connect": connect,
         "out": out, "device": device, "threads": threads, "saves": saves, "monitor": monitor},
    )  # fmt: skip
    keep_freed_memory()
    set_threads(here)
    agreement = accepted(plan, party)
    network, secret = network_of(here, party, agreement.plan.terms, insecure=insecure)
    owners = agreement.plan.owners
    results = Path(here.out or f"runs/{agreement.plan.terms.name}/{party}")
    place = here.saves or str(results / "saves" / agreement.plan.digest[:12])
    recorder = Recorder() if record else None
    taps = [recorder] if recorder else []
    try:
        with (
            observer_for(facts, (party,) if party in owners else owners[: len(owners) == 1]) as observer,
            audit_for(here, party, agreement.plan.digest, results) as audits,
        ):
            outcome = run_party(
                agreement,
                party,
                network,
                secret=secret,
                data=rows_of(here, here.data, plan),
                held_out=rows_of(replace(here, aligned=""), here.held_out, plan),
                observers=(observer, *audits),
                device=here.device,
                saves=Saves(place=place, anew=anew),
                denied=DenyList(own_file or plan.parent / f"{party}.toml", here.deny),
                ledger=ledger_of(here, party, agreement.plan),
                openings=Path(here.keys) / f"{party}-{agreement.plan.digest[:12]}.openings",
                taps=(*taps, *monitor_for(here, party, agreement.plan, (observer, *audits), secret)),
            )
    except KeyboardInterrupt:
        typer.echo(f"cutlayer: {party} was stopped by hand", err=True)
        raise typer.Exit(130) from None
    saved = outcome.save(results)
    if recorder and record:
        recorder.save(record)
    report = outcome.report() | {"saved": str(saved)}
    _write_json(json_file, report)
    if not facts:
        _print_outcome(report)


def simulate(
    plan: PlanPath = Path("plan.toml"),
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=rows.csv, NAME=rows.npz or NAME=package.module:factory.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Use the parties' own secrets from this folder.")] = None,
    threads: Annotated[int, typer.Option(help="Threads for torch; 0 leaves its default.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Run all parties of a plan in this process: the same result as over a network, given the same secrets."""
    from cutlayer.keys.certificates import party_secret
    from cutlayer.party.agreement import read_agreement
    from cutlayer.party.report import report, versions
    from cutlayer.simulation import simulate_plan

    given = named(data or [])
    agreement = read_agreement(plan)
    files = {
        name: party_file(plan, name, None, {"data": given.get(name, "")}) for name in agreement.plan.row_owners
    }  # fmt: skip
    set_threads(replace(next(iter(files.values())), threads=threads))
    start = time.perf_counter()
    with observer_for(False, agreement.plan.owners) as observer:
        result = simulate_plan(
            agreement,
            all_rows({name: (file, file.data) for name, file in files.items()}, plan),
            held_out=all_rows({n: (replace(f, aligned=""), f.held_out) for n, f in files.items()}, plan),
            secrets=None if keys is None else {name: party_secret(keys, name) for name in agreement.plan.terms.parties},
            observers=(observer,),
        )
    seconds = time.perf_counter() - start
    parties = {name: report(party, result.meters[name], seconds) for name, party in result.parties.items()}
    _write_json(
        json_file,
        {
            "plan": agreement.plan.digest,
            "metrics": result.metrics,
            "history": result.history,
            "bytes": result.bytes,
            "times": {"total": seconds},
            "weights": {name: party["weights"] for name, party in parties.items()},
            "versions": versions(),
            "parties": parties,
        },
    )
    for entry in parties.values():
        _print_outcome(entry)


# ---------------------------------------------------------------------- what is local


def accepted(plan: Path, party: str) -> "Agreement":
    """The agreement in these files, if this party's person has accepted it and it is a party. Raises `PlanError`."""
    from cutlayer.party import local
    from cutlayer.party.agreement import read_agreement

    digest = local.check_accepted(plan)
    agreement = read_agreement(plan)
    if agreement.plan.digest != digest:
        raise PlanError(f"{plan} gives another digest here than when it was accepted: `cutlayer accept {plan}` again")
    if party not in agreement.plan.terms.parties:
        raise PlanError(f"{party!r} is no party of {plan}; its parties are {', '.join(agreement.plan.terms.parties)}")
    return agreement


def party_file(plan: Path, party: str, given: Path | None, flags: dict[str, Any]) -> "PartyFile":
    """What the party's own file says, and what the command line says instead."""
    from cutlayer.party.local import PartyFile, read_party_file

    path = given or plan.parent / f"{party}.toml"
    there = given is not None or path.exists()
    here = read_party_file(path) if there else PartyFile(keys=str(plan.parent / "keys"))
    return replace(here, **{name: value for name, value in flags.items() if value})


def named(pairs: list[str]) -> dict[str, str]:
    """What `--data NAME=reference` said, by party. Raises `PlanError`."""
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := [name for name, reference in found.items() if not name or not reference]:
        raise PlanError(f"--data {wrong[0]!r}: write NAME=rows.csv, NAME=rows.npz or NAME=package.module:factory")
    return found


def rows_of(
    here: "PartyFile", reference: str, plan: Path, encoding: "Encoding | None" = None, *, labelled: bool = True
) -> "Dataset[Any] | None":
    """The rows that a reference names. A factory's module may lie beside the plan."""
    from cutlayer.data.factory import open_rows

    if not reference:
        return None
    roles = here.roles
    return open_rows(
        reference if ":" in reference else str(Path(reference).resolve()),
        features=None if roles else here.features,
        label=None if roles else here.label,
        classes=None if roles else here.classes,
        folder=plan.resolve().parent,
        options=here.options,
        roles=roles,
        encoding=encoding,
        labelled=labelled,
    )


def all_rows(given: "dict[str, tuple[PartyFile, str]]", plan: Path) -> "dict[str, Dataset[Any]]":
    """The rows of the parties that name any."""
    rows = {name: rows_of(here, reference, plan) for name, (here, reference) in given.items()}
    return {name: own for name, own in rows.items() if own is not None}


def monitor_for(
    here: "PartyFile", party: str, plan: "Plan", observers: "Sequence[Observer]", secret: bytes
) -> "tuple[Monitor, ...]":  # fmt: skip
    """The party's monitor, if it wants one; what it finds is told to the observers."""
    from cutlayer.observe.monitor import Monitor
    from cutlayer.observe.watch import Watch
    from cutlayer.plan.streams import stream_seed

    if not here.monitor:
        return ()

    def tell(fact: Leaked | Alarmed) -> None:
        for observer in observers:
            observer(fact)
            if isinstance(fact, Alarmed):
                observer(Noticed(party=fact.party, sentence=fact.sentence))

    watch = Watch(
        classes=classes_seen(plan, party),
        stops=plan.terms.on_alarm == "end",
        label_edges=frozenset(edge.name for edge in plan.topology.edges if plan.topology.source_kind(edge) == "labels"),
    )
    return (Monitor(watch, tell, seed=stream_seed(secret, "monitor")),)


def classes_seen(plan: "Plan", party: str) -> int:
    """How many classes the labels have that a party brings or, if it brings none, is sent.

    0 where they are numbers, or not all of one kind. What is compared with one logit is of two.
    """
    from cutlayer.model.loss import KINDS

    topology, found = plan.topology, set[int]()
    own = {source.name for source in plan.sources_of(party) if source.kind == "labels"}
    for node in topology.losses:
        edge = topology.target(node.name)
        if edge is None or edge.source not in (own or plan.contents.classes):
            continue
        one_number = plan.contents.edges[edge.name][0].shape in (("B",), ("B", 1))
        two = 2 if KINDS[plan.loss_of(node.name).name].logit and one_number else 0
        found.add(plan.contents.classes.get(edge.source, 0) or two)
    return found.pop() if len(found) == 1 else 0


def ledger_of(here: "PartyFile", party: str, plan: "Plan") -> Path | None:
    """Where the party writes down what it tells of its rows by this plan: beside its keys, for as long as those last.

    None where the plan neither defends nor bounds anything.
    """
    if not (plan.terms.defence or plan.terms.budget):
        return None
    folder = Path(here.keys)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{party}-{plan.digest[:12]}.ledger"


def network_of(here: "PartyFile", party: str, terms: "Terms", *, insecure: bool) -> "tuple[Network, bytes]":
    """Where the party is reached, its credentials and seals; and its secret."""
    from cutlayer.keys.certificates import load_credentials, party_secret
    from cutlayer.keys.pairs import PublicKeys
    from cutlayer.keys.sealing import load_sealer
    from cutlayer.party.run import Network, address_of
    from cutlayer.plan.check import sealing_parties

    folder = Path(here.keys)
    credentials = None if insecure else load_credentials(folder, party)
    for warning in credentials.warnings if credentials else ():
        typer.echo(f"cutlayer: warning: {warning}", err=True)
    keys = {
        name: PublicKeys(signing=each.signing_key, sealing=each.sealing_key) for name, each in terms.parties.items()
    }
    network = Network(
        credentials=credentials,
        seals=load_sealer(folder, party, keys) if party in sealing_parties(terms) else None,
        listen=address_of(here.listen, party) if here.listen else None,
        connect=address_of(here.connect, party) if here.connect else None,
        insecure_plaintext_on_loopback=insecure,
        transport=here.transport,
    )
    return network, party_secret(folder, party)


def set_threads(here: "PartyFile") -> None:
    """As many threads for torch as the party's file says."""
    import torch

    if here.threads:
        torch.set_num_threads(here.threads)


# ---------------------------------------------------------------------- what is shown


def observer_for(facts: bool, owners: tuple[str, ...]) -> Any:
    """Progress bars for these owners of rows, or lines of facts; a context that gives an observer."""
    from contextlib import nullcontext

    from cutlayer.observe.progress import ProgressBars

    return nullcontext(_print_fact) if facts else ProgressBars(owners)


@contextmanager
def audit_for(here: "PartyFile", party: str, plan: str, results: Path) -> "Iterator[tuple[Audit, ...]]":
    """The log of all that crosses, beside the results, signed if the party has a key to sign with; or none."""
    from cutlayer.keys.signing import load_signer
    from cutlayer.observe.audit import Audit

    if not here.audit:
        yield ()
        return
    keys = Path(here.keys)
    sign = load_signer(keys, party) if (keys / f"{party}.seal.key").exists() else None
    results.mkdir(parents=True, exist_ok=True)
    audit = Audit(results / "audit.jsonl", party=party, plan=plan, sign=sign)
    try:
        yield (audit,)
    finally:
        audit.close()


def _print_fact(fact: Fact) -> None:
    if isinstance(fact, Alarmed | Leaked | Noticed | Paced | Progressed | Scored | Saved | Resumed | TurnedDown):
        print(to_line(fact), flush=True)


def _write_json(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def _print_outcome(report: dict[str, Any]) -> None:
    scores = ", ".join(
        f"{owner} " + " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        for owner, metrics in report["metrics"].items()
    )
    sent, received = report["bytes"]["sent"], report["bytes"]["received"]
    print(f"{report['party']}: {scores or 'no evaluation'}; sent {sent:,} bytes, received {received:,}")
    for line in report["privacy"]:
        print(f"{report['party']}: {line}")
    if "saved" in report:
        print(f"{report['party']}: own weights in {report['saved']}")
