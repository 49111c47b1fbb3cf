"""`cutlayer ping`: round trip and bandwidth between two parties, over the lanes that a run would use."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.running import PartyPath, PlanPath, network_of, party_file
from cutlayer.errors import CutlayerError, PlanError

if TYPE_CHECKING:
    from cutlayer.party.network import Address, Network
    from cutlayer.plan.terms import Terms
    from cutlayer.studies.lines import Measured


def ping(  # noqa: PLR0913 (each option overrides one line of the party's file)
    plan: PlanPath = Path("plan.toml"),
    *,
    party: Annotated[str, typer.Option("--as", help="Which party of the plan this is.")],
    peer: Annotated[str, typer.Option(help="Conductor: wait for this party only; by default for all others.")] = "",
    own_file: PartyPath = None,
    keys: Annotated[str, typer.Option(help="The party's folder of keys.")] = "",
    listen: Annotated[str, typer.Option(help="Conductor: HOST:PORT to listen on, instead of the plan's.")] = "",
    connect: Annotated[str, typer.Option(help="Others: HOST:PORT to dial, instead of the plan's.")] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was found here, for `cutlayer plan advise --link`.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure-plaintext-on-loopback", help="NO encryption, NO identities; loopback only.")
    ] = False,
) -> None:
    """Measure the link to another party; it runs the same command. The conductor listens, the others dial it."""
    from cutlayer.party.agreement import read_plan_terms
    from cutlayer.plan import check

    terms = read_plan_terms(plan)
    if faults := check.faults(terms):
        raise PlanError(faults)
    _check_names(terms, party, peer)
    here = party_file(plan, party, own_file, {"keys": keys, "listen": listen, "connect": connect})
    network, _ = network_of(here, party, terms, insecure=insecure)
    try:
        if party == terms.conducting:
            names = [name for name in ([peer] if peer else terms.parties) if name not in (party, *here.deny)]
            if not names:
                raise PlanError(f"{party} lets nobody in: see deny in its own file")
            found = _answer(terms, party, network, names)
        else:
            found = [_measure(terms, party, network)]
    except KeyboardInterrupt:
        typer.echo(f"cutlayer: {party} was stopped by hand", err=True)
        raise typer.Exit(130) from None
    if json_file is not None:
        _write(json_file, found)


def _check_names(terms: "Terms", party: str, peer: str) -> None:
    for name in filter(None, (party, peer)):
        if name not in terms.parties:
            raise PlanError(f"{name!r} is no party of the plan; its parties are {', '.join(terms.parties)}")
    if party != terms.conducting and peer not in ("", terms.conducting):
        raise PlanError(f"{party} has a link to {terms.conducting} only: leave --peer out")
    if peer == party:
        raise PlanError(f"{party} has no link to itself: leave --peer out")


def _address(terms: "Terms", given: "Address | None") -> "Address":
    from cutlayer.party.network import address_of

    return given or address_of(terms.parties[terms.conducting].address, terms.conducting)


def _measure(terms: "Terms", party: str, network: "Network") -> "Measured":
    """As who dials. Raises `CutlayerError`."""
    from cutlayer.studies.ping import measure
    from cutlayer.transport.dialler import dial

    server, address = terms.conducting, _address(terms, network.connect)
    print(f"{party} dials {server} at {address[0]}:{address[1]}", flush=True)
    channel = dial(
        address,
        network.credentials,
        party=party,
        peer=server,
        limits=replace(terms.limits, reconnect_timeout_s=0.0),
        pins=terms.pins,
        insecure_plaintext_on_loopback=network.insecure_plaintext_on_loopback,
    )
    try:
        found = measure(channel, party)
    finally:
        channel.close()
    _show(found)
    return found


def _answer(terms: "Terms", party: str, network: "Network", names: list[str]) -> "list[Measured]":
    """As who listens: one party after another, until each was measured. Raises `ChannelError`."""
    from cutlayer.studies.ping import answer
    from cutlayer.transport.listener import Listener, Refusal

    def refused(refusal: Refusal) -> None:
        print(f"refused a connection from {refusal.address}: {refusal.reason}", flush=True)

    found: dict[str, Measured] = {}
    listener = Listener(
        _address(terms, network.listen),
        network.credentials,
        party=party,
        allowed=names,
        limits=replace(terms.limits, reconnect_timeout_s=0.0),
        pins=terms.pins,
        on_refused=refused,
        insecure_plaintext_on_loopback=network.insecure_plaintext_on_loopback,
    )
    try:
        print(f"{party} listens on port {listener.port} for {', '.join(names)}", flush=True)
        while set(found) != set(names):
            channel = listener.accept(terms.limits.join_timeout_s)
            try:
                found[channel.peer] = answer(channel)
                _show(found[channel.peer])
            except CutlayerError as error:  # who comes and goes must not end it for the others
                print(f"{channel.peer}: {error}", flush=True)
            finally:
                channel.close()
    finally:
        listener.close()
    return list(found.values())


def _show(found: "Measured") -> None:
    up, down = (8e-6 * rate for rate in (found.up_bytes_per_s, found.down_bytes_per_s))
    print(
        f"{found.dialler} and {found.listener}: round trip {1e3 * found.rtt_s:.2f} ms (lowest "
        f"{1e3 * found.lowest_rtt_s:.2f}); {up:,.1f} Mbit/s to {found.listener}, {down:,.1f} Mbit/s to {found.dialler}",
        flush=True,
    )


def _write(path: Path, found: "list[Measured]") -> None:
    """One file for one link: who listened to several writes of the slowest."""
    from cutlayer.studies.lines import write_measured

    slowest = min(found, key=lambda each: min(each.up_bytes_per_s, each.down_bytes_per_s))
    if len(found) > 1:
        print(f"{path}: the slowest link, to {slowest.dialler}")
    write_measured(path, slowest)
