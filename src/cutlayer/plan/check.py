"""What must hold between the terms of a plan. Faults are sentences; a sound plan has none."""

import math
import re
from collections.abc import Iterator

from cutlayer.plan.document import nearest
from cutlayer.plan.plan import FORMAT, Method, PartyTerms, Terms
from cutlayer.plan.schedule import LEGAL, SCHEDULES
from cutlayer.plan.topology import TOPOLOGIES

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

PIN = re.compile(r"[0-9a-f]{64}")
ROWS_BYTES = 24
"""What a party's rows take in a header, beside its name."""

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:]+):[0-9]{1,5}")


def faults(terms: Terms) -> list[str]:
    """All faults of the terms themselves; what needs the model is checked when the plan is drafted."""
    return [*_form(terms), *_topology(terms), *_parties(terms), *_training(terms), *_limits(terms)]


def _form(terms: Terms) -> Iterator[str]:
    if terms.format != FORMAT:
        yield f"format = {terms.format}: this cutlayer reads plans of format {FORMAT}"
    if any(size <= 0 for size in terms.input.shape):
        yield f"input.shape = {list(terms.input.shape)}: sizes of one row are at least 1 (without the batch dimension)"


def _topology(terms: Terms) -> Iterator[str]:
    if terms.topology not in TOPOLOGIES:
        yield f"topology = {terms.topology!r} is unknown{nearest(terms.topology, TOPOLOGIES)}"
    if terms.schedule not in SCHEDULES:
        yield f"schedule = {terms.schedule!r} is unknown{nearest(terms.schedule, SCHEDULES)}"
    known = terms.topology in TOPOLOGIES and terms.schedule in SCHEDULES
    if known and (terms.topology, terms.schedule) not in LEGAL:
        yield f"the topology {terms.topology} does not go with the schedule {terms.schedule}"
    if terms.topology in TOPOLOGIES and terms.model.cut:
        segments = [segment.name for segment in TOPOLOGIES[terms.topology]().segments]
        if len(terms.model.cut) != len(segments) - 1:
            yield (
                f"model.cut names {len(terms.model.cut)} layer(s), but {terms.topology} has {len(segments)} segments "
                f"({', '.join(segments)}): name {len(segments) - 1}"
            )


def _parties(terms: Terms) -> Iterator[str]:
    for name, party in terms.parties.items():
        yield from _party(name, party)
    if terms.topology not in TOPOLOGIES:
        return
    roles = TOPOLOGIES[terms.topology]().roles
    for name, party in terms.parties.items():
        if party.role not in roles:
            yield f"parties.{name}.role = {party.role!r} is no role of {terms.topology}{nearest(party.role, roles)}"
    if "client" in roles and not terms.filling("client"):
        yield 'no party has role = "client": at least one must bring rows'
    yield from _server(terms)


def _party(name: str, party: PartyTerms) -> Iterator[str]:
    if not DNS_LABEL.fullmatch(name):
        yield f"parties.{name}: a party's name is a DNS label: small letters, digits and inner hyphens, at most 63"
    if party.key and not PIN.fullmatch(party.key):
        yield f"parties.{name}.key: 64 hexadecimal digits, as `cutlayer keys sign` prints them"
    if party.address and not ADDRESS.fullmatch(party.address):
        yield f"parties.{name}.address = {party.address!r}: host:port, such as lab.example.org:7443"


def _server(terms: Terms) -> Iterator[str]:
    servers = terms.filling("server")
    if len(servers) != 1:
        yield f'{len(servers)} parties have role = "server"; {terms.topology} has exactly one'
    elif terms.conductor not in {"", servers[0]}:
        yield f"conductor = {terms.conductor!r}: the conductor must be {servers[0]!r}, the one that all clients reach"


def _training(terms: Terms) -> Iterator[str]:
    training = terms.training
    if training.batch_size < 1:
        yield f"training.batch_size = {training.batch_size}: at least 1"
    if training.rounds < 0:
        yield f"training.rounds = {training.rounds}: at least 0"
    if not 0 <= training.held_out < 1:
        yield f"training.held_out = {training.held_out}: a part of each party's rows, at least 0 and under 1"
    if not 1 <= training.micro_batches <= terms.limits.live_tickets:
        yield (
            f"training.micro_batches = {training.micro_batches}: at least 1, at most limits.live_tickets "
            f"({terms.limits.live_tickets})"
        )
    every = training.lr_schedule.options.get("every", "round") if training.lr_schedule else "round"
    if every not in ("round", "step"):
        yield f'training.lr_schedule.every = {every!r}: "round" or "step"'
    for what in ("loss", "optimizer", "lr_schedule"):
        yield from _numbers(f"training.{what}", getattr(training, what))


def _numbers(what: str, method: Method | None) -> Iterator[str]:
    for option, value in method.options.items() if method else ():
        values = value if isinstance(value, list) else [value]
        if not all(math.isfinite(each) for each in values if not isinstance(each, str)):
            yield f"{what}.{option} = {value}: numbers are finite"


def _limits(terms: Terms) -> Iterator[str]:
    if (needed := sum(len(name) + ROWS_BYTES for name in terms.parties)) > terms.limits.header_bytes:
        yield (
            f"limits.header_bytes = {terms.limits.header_bytes}: to name {len(terms.parties)} parties and their rows "
            f"takes {needed}"
        )
    for name in terms.limits.__dataclass_fields__:
        if not 0 < getattr(terms.limits, name) < math.inf:
            yield f"limits.{name} = {getattr(terms.limits, name)}: a finite number above 0"
