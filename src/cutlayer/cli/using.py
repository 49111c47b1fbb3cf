"""`cutlayer predict` and `cutlayer export`: what a trained model is for."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.running import (
    PartyPath,
    PlanPath,
    accepted,
    ledger_of,
    network_of,
    observer_for,
    party_file,
    rows_of,
    set_threads,
)
from cutlayer.errors import PlanError


def predict(  # noqa: PLR0913 (each option overrides one line of the party's file)
    plan: PlanPath = Path("plan.toml"),
    *,
    party: Annotated[str, typer.Option("--as", help="Which party of the plan this is.")],
    own_file: PartyPath = None,
    data: Annotated[str, typer.Option(help="Rows to answer; labels are not needed.")] = "",
    aligned: Annotated[str, typer.Option(help="What `cutlayer align` wrote for these rows.")] = "",
    weights: Annotated[str, typer.Option(help="Folder of this party's trained weights.")] = "",
    answers: Annotated[Path | None, typer.Option(help="Where the party that answers writes: .csv or .parquet.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Conductor: a party that is not there.")] = None,
    keys: Annotated[str, typer.Option(help="The party's folder of keys.")] = "",
    listen: Annotated[str, typer.Option(help="Conductor: HOST:PORT to listen on, instead of the plan's.")] = "",
    connect: Annotated[str, typer.Option(help="Others: HOST:PORT to dial, instead of the plan's.")] = "",
    device: Annotated[str, typer.Option(help="A torch device, such as cuda.")] = "",
    facts: Annotated[bool, typer.Option("--facts", help="Print facts as JSON lines instead of progress.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure-plaintext-on-loopback", help="NO encryption, NO identities; loopback only.")
    ] = False,
) -> None:
    """Use the trained model on new rows, with the other parties, as one of them. Parties may start in any order."""
    from cutlayer.data.answers import check_ending
    from cutlayer.party.local import DenyList
    from cutlayer.party.memory import keep_freed_memory
    from cutlayer.party.run import Prediction
    from cutlayer.party.run import run as run_party
    from cutlayer.party.saved import read_by_owner, read_encoding, read_weights
    from cutlayer.party.using import write_answers_of

    agreement = accepted(plan, party)
    here = party_file(
        plan,
        party,
        own_file,
        {"data": data, "aligned": aligned, "keys": keys, "listen": listen, "connect": connect, "device": device},
    )
    if not aligned and data:
        here = replace(here, aligned="")
    if answers is not None:
        check_ending(answers)
    keep_freed_memory()
    set_threads(here)
    folder = Path(weights or here.out or f"runs/{agreement.plan.terms.name}/{party}")
    network, secret = network_of(here, party, agreement.plan.terms, insecure=insecure)
    prediction = Prediction(
        weights=read_weights(folder, agreement.plan, party) if agreement.segments_of(party) else {},
        absent=tuple(without or ()),
        by_owner=read_by_owner(folder, agreement.plan, party),
    )
    rows = None
    if agreement.features_of(party):
        encoding = read_encoding(folder, needed=here.roles is not None)
        rows = rows_of(here, here.data, plan, encoding, labelled=False)
    with observer_for(facts, agreement.plan.owners) as observer:
        outcome = run_party(
            agreement,
            party,
            network,
            secret=secret,
            data=rows,
            observers=(observer,),
            device=here.device,
            prediction=prediction,
            denied=DenyList(own_file or plan.parent / f"{party}.toml", here.deny),
            ledger=ledger_of(here, party, agreement.plan),
        )
    if outcome.party.answers:
        path = write_answers_of(outcome, answers or folder / "answers.csv", here.classes)
        print(f"{party}: answers in {path}")
    else:
        print(f"{party}: its part is done; who has the loss has the answers")


def export(
    plan: PlanPath = Path("plan.toml"),
    *,
    weights: Annotated[list[Path], typer.Option(help="A party's folder or file of weights; once for each party.")],
    out: Annotated[Path, typer.Option(help="A folder for the model; or a file that ends in .onnx.")],
) -> None:
    """Put the segments that their owners release together: one file of weights and a module that loads it, or ONNX."""
    from cutlayer.party.agreement import read_agreement
    from cutlayer.party.export import released, write_model, write_onnx
    from cutlayer.party.saved import read_weights

    agreement = read_agreement(plan)
    model = released(agreement, [read_weights(path, agreement.plan) for path in weights])
    if out.suffix == ".onnx":
        print(f"{write_onnx(out, agreement, model)}: the whole model, for any number of rows")
        return
    if out.suffix and not out.is_dir():
        raise PlanError(f"{out} is no folder, nor does it end in .onnx: name one of both")
    print(f"{write_model(out, plan, agreement, model)}: the whole model; in Python: cutlayer.load_model({str(out)!r})")
