"""What must hold between the terms of a plan. Faults are sentences; a sound plan has none."""

import math
import re
from collections.abc import Iterator

from cutlayer.plan.document import nearest
from cutlayer.plan.plan import FORMAT, Method, PartyTerms, Terms, Training
from cutlayer.plan.schedule import LEGAL, SCHEDULES, Schedule
from cutlayer.plan.topology import TOPOLOGIES

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

PIN = re.compile(r"[0-9a-f]{64}")
ROWS_BYTES = 24
"""What a party's rows take in a header, beside its name."""

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:]+):[0-9]{1,5}")


def faults(terms: Terms) -> list[str]:
    """All faults of the terms themselves; what needs the model is checked when the plan is drafted."""
    return [
        *_form(terms),
        *_topology(terms),
        *_parties(terms),
        *_training(terms),
        *_schedule_terms(terms),
        *_limits(terms),
    ]


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
    if known and terms.schedule not in LEGAL[terms.topology]:
        yield (
            f"the topology {terms.topology} does not go with the schedule {terms.schedule}; it goes with "
            f"{', '.join(sorted(LEGAL[terms.topology]))}"
        )
    if terms.topology in TOPOLOGIES:
        cuts = {"model": terms.model.cut} | {f"parties.{name}": party.cut for name, party in terms.parties.items()}
        for where, cut in cuts.items():
            yield from _cut(where, cut, terms.topology)


def _cut(where: str, cut: tuple[str, ...], topology: str) -> Iterator[str]:
    segments = [segment.name for segment in TOPOLOGIES[topology]().segments]
    if cut and len(cut) != len(segments) - 1:
        yield (
            f"{where}.cut names {len(cut)} layer(s), but {topology} has {len(segments)} segments "
            f"({', '.join(segments)}): name {len(segments) - 1}"
        )


def _parties(terms: Terms) -> Iterator[str]:
    for name, party in terms.parties.items():
        yield from _party(name, party)
    if terms.topology not in TOPOLOGIES:
        return
    roles = (*TOPOLOGIES[terms.topology]().roles, "aggregator")
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
    for name_of_key in ("signing_key", "sealing_key"):
        if (value := getattr(party, name_of_key)) and not PIN.fullmatch(value):
            yield f"parties.{name}.{name_of_key}: 64 hexadecimal digits, as `cutlayer keys pin` writes them"
    if not 0 < party.lr_scale < math.inf:
        yield f"parties.{name}.lr_scale = {party.lr_scale}: a finite number above 0"
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
    for what in ("loss", "optimizer", "server_optimizer", "lr_schedule"):
        yield from _numbers(f"training.{what}", getattr(training, what))


def _schedule_terms(terms: Terms) -> Iterator[str]:
    """What the schedule asks of the terms, and which terms mean nothing under it."""
    if terms.schedule not in SCHEDULES:
        return
    schedule, training = SCHEDULES[terms.schedule], terms.training
    yield from _rounds(training)
    yield from _aggregator(terms, schedule)
    idle = {
        "training.averaged_optimizer": training.averaged_optimizer != "reset" and not schedule.averaged,
        "training.proximal": training.proximal != 0 and not schedule.averaged,
        "training.client_segments": training.client_segments != "equal" and not schedule.joined,
        "training.cut_average": training.cut_average != 0 and not schedule.joined,
        "turn": terms.turn != "epoch" and terms.schedule not in TAKE_TURNS,
        "training.personal": bool(training.personal) and not moves_state(terms),
        "parties.….lr_scale": schedule.joined and any(party.lr_scale != 1 for party in terms.parties.values()),
        "parties.….cut": terms.schedule != "splitfed_v1" and any(party.cut for party in terms.parties.values()),
    }
    for term, at_fault in idle.items():
        if at_fault:
            yield f"{term} means nothing under the schedule {terms.schedule}: {IDLE[term]}"
    for name, party in terms.parties.items():
        if party.role != "client" and (party.cut or party.lr_scale != 1):
            yield f"parties.{name}: cut and lr_scale are said of clients"
    if schedule.joined and training.cut_average and training.client_segments == "equal":
        yield (
            "training.cut_average: clients whose segments are equal by summed gradients need their own gradients; "
            'say client_segments = "own"'
        )


IDLE = {
    "training.averaged_optimizer": "it is for splitfed_v1, splitfed_v2 and splitfed_v3, which average weights",
    "training.proximal": "it is for splitfed_v1, splitfed_v2 and splitfed_v3, which average weights",
    "training.client_segments": "it is for parallel",
    "training.cut_average": "it is for parallel",
    "turn": "it is for alternating and relay, where clients take turns",
    "training.personal": "no weights leave their owner",
    "parties.….lr_scale": "a step is made of all clients' rows together",
    "parties.….cut": "different cuts are for splitfed_v1, where each client has replicas of its own at the server",
}
"""Which schedules a term is for."""
TAKE_TURNS = ("alternating", "relay")


def needs_aggregator(terms: Terms) -> bool:
    """Whether something of the clients' is summed."""
    schedule = SCHEDULES[terms.schedule]
    return "client" in schedule.averaged or (schedule.joined and terms.training.client_segments == "equal")


def moves_state(terms: Terms) -> bool:
    """Whether weights or gradients of a party's own segments go to another party, or are averaged."""
    return needs_aggregator(terms) or SCHEDULES[terms.schedule].hands_over or bool(SCHEDULES[terms.schedule].averaged)


def sealing_parties(terms: Terms) -> tuple[str, ...]:
    """The parties whose states, sent or received, the conductor's party forwards and must not read."""
    hands_over = SCHEDULES[terms.schedule].hands_over
    if not hands_over and not (needs_aggregator(terms) and terms.filling("aggregator")):
        return ()
    return (*terms.filling("client"), *terms.filling("aggregator"))


def _rounds(training: Training) -> Iterator[str]:
    choice = training.clients_per_round
    if isinstance(choice, int) and choice < 1:
        yield f"training.clients_per_round = {choice}: a number of clients, at least 1"
    if isinstance(choice, float) and not 0 < choice <= 1:
        yield f"training.clients_per_round = {choice}: as a part of all clients it is above 0 and at most 1.0"
    if training.local_epochs < 1:
        yield f"training.local_epochs = {training.local_epochs}: at least 1"
    if training.local_steps < 0:
        yield f"training.local_steps = {training.local_steps}: at least 1, or 0 for whole epochs"
    if training.local_steps and training.local_epochs != 1:
        yield "training.local_epochs and training.local_steps are both given: say one of them"
    if not 0 <= training.proximal < math.inf:
        yield f"training.proximal = {training.proximal}: a finite number, at least 0"
    if not 0 <= training.cut_average <= 1:
        yield f"training.cut_average = {training.cut_average}: a part of each batch, from 0 to 1"


def _aggregator(terms: Terms, schedule: Schedule) -> Iterator[str]:
    own = terms.filling("aggregator")
    if len(own) > 1:
        yield f'{len(own)} parties have role = "aggregator"; one sums for all'
    if own and terms.aggregator_sees_weights:
        yield f"aggregator_sees_weights = true is for plans without an aggregator, but {own[0]} is one: leave one out"
    if needs_aggregator(terms) and not own and not terms.aggregator_sees_weights:
        yield (
            f'under {terms.schedule} what clients send is summed: add a party with role = "aggregator", or say '
            "aggregator_sees_weights = true, which lets the server see each client's weights next to its activations"
        )
    if not needs_aggregator(terms) and (own or terms.aggregator_sees_weights):
        yield f"under {terms.schedule} nothing of the clients' is summed: leave the aggregator out"


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
