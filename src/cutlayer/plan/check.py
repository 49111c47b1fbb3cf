"""What must hold between the terms of a plan. Faults are sentences; a sound plan has none."""

import math
import re
from collections.abc import Iterator

from cutlayer.plan import casting
from cutlayer.plan.schedule import SCHEDULES, Schedule
from cutlayer.plan.terms import FORMAT, Method, PartyTerms, Terms, Training

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

PIN = re.compile(r"[0-9a-f]{64}")
ROWS_BYTES = 44
"""What a party's rows take in a header, beside its name."""

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:]+):[0-9]{1,5}")


def faults(terms: Terms) -> list[str]:
    """All faults of the terms themselves; what needs the model is checked when the plan is drafted."""
    return [
        *_form(terms),
        *(fault for name, party in terms.parties.items() for fault in _party(name, party)),
        *casting.faults(terms),
        *_training(terms),
        *_schedule_terms(terms),
        *_quorum(terms),
        *_limits(terms),
    ]


def _form(terms: Terms) -> Iterator[str]:
    if terms.format != FORMAT:
        yield f"format = {terms.format}: this cutlayer reads plans of format {FORMAT}"
    given = {"input": terms.inputs_of("")} | {f"parties.{name}.input": p.input for name, p in terms.parties.items()}
    for where, inputs in given.items():
        for each in inputs:
            if any(size <= 0 for size in each.shape):
                sizes = "sizes of one row are at least 1 (without the batch dimension)"
                yield f"{where}.shape = {list(each.shape)}: {sizes}"


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
    yield from _numbers_of(training)


def _numbers_of(training: Training) -> Iterator[str]:
    """Numbers of methods, weights and parts."""
    for what in ("loss", "optimizer", "server_optimizer", "lr_schedule"):
        yield from _numbers(f"training.{what}", getattr(training, what))
    for name, method in training.losses.items():
        yield from _numbers(f"training.losses.{name}", method)
    for name, weight in training.loss_weights.items():
        if not 0 <= weight < math.inf:
            yield f"training.loss_weights.{name} = {weight}: a finite number, at least 0"
    if training.upload_every < 1:
        yield f"training.upload_every = {training.upload_every}: at least 1"
    if not 0 <= training.party_dropout < 1:
        yield f"training.party_dropout = {training.party_dropout}: how often, at least 0 and under 1"


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
        "training.loss_weights": bool(training.loss_weights) and _losses(terms) == 1,
        "parties.….lr_scale": (schedule.joined or schedule.together)
        and any(party.lr_scale != 1 for party in terms.parties.values()),
        "parties.….cut": terms.schedule != "splitfed_v1" and any(party.cut for party in terms.parties.values()),
        "training.clients_per_round": schedule.together and training.clients_per_round != "all",
        "training.upload_every": training.upload_every != 1 and terms.topology != "decoupled",
        "training.party_dropout": not schedule.together and training.party_dropout != 0,
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
    "training.clients_per_round": "all parties take part in every step",
    "training.loss_weights": "there is one loss, and nothing to weigh it against",
    "training.upload_every": "it is for the topology decoupled",
    "training.party_dropout": "it is for joint, where a segment joins what several parties have of the same rows",
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
    """The parties that say or hear, by way of the conductor, what it must not read: states, frames, the order key."""
    hands_over = SCHEDULES[terms.schedule].hands_over or (terms.quorum != "all" and needs_aggregator(terms))
    sealing: set[str] = set()
    if hands_over or (needs_aggregator(terms) and terms.filling("aggregator")):
        sealing.update(terms.filling("client"), terms.filling("aggregator"))
    sealing.update(*terms.forwarded_pairs)
    if SCHEDULES[terms.schedule].together:
        sealing.update(_told_by_others(terms))
    return tuple(party for party in terms.parties if party in sealing)


def _losses(terms: Terms) -> int:
    """How many losses the topology has; 0 where there is no such topology."""
    return len(terms.drawn().losses) if terms.topology in casting.ROLES else 0


def _told_by_others(terms: Terms) -> set[str]:
    """Those who tell or are told the order of rows by way of the conductor, in training or when the model is used."""
    told: set[str] = set()
    for bringing in (terms.bringing("rows", "labels"), terms.bringing("rows")):
        lead, *others = bringing or ("",)
        if terms.conducting != lead and (far := [party for party in others if party != terms.conducting]):
            told.update((lead, *far))
    return told


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


def _quorum(terms: Terms) -> Iterator[str]:
    """How many clients are enough, and whether a run can do without the others."""
    clients = len(terms.filling("client"))
    if terms.saves.every_steps < 0:
        yield f"saves.every_steps = {terms.saves.every_steps}: a number of steps, or 0 for none within a round"
    if terms.saves.every_rounds < 1:
        yield f"saves.every_rounds = {terms.saves.every_rounds}: a number of rounds, at least 1"
    if terms.quorum == "all" or terms.schedule not in SCHEDULES:
        return
    if not 1 <= terms.quorum <= clients:
        yield f'quorum = {terms.quorum}: how many of the {clients} clients are enough, or "all"'
    if SCHEDULES[terms.schedule].hands_over:
        yield (
            f"quorum = {terms.quorum}, but under {terms.schedule} the state lies with one client, and would be lost "
            'with it: leave the quorum at "all"'
        )
    if SCHEDULES[terms.schedule].together and not terms.training.party_dropout:
        yield (
            f"quorum = {terms.quorum}, but the model never learns to do without a party: say training.party_dropout, "
            'or leave the quorum at "all"'
        )


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
        value, may_be_0 = getattr(terms.limits, name), name == "reconnect_timeout_s"
        if not (0 < value < math.inf or (may_be_0 and value == 0)):
            yield f"limits.{name} = {value}: a finite number{', or 0' if may_be_0 else ' above 0'}"
