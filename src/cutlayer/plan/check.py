"""What must hold between the terms of a plan. Faults are sentences; a sound plan has none."""

import math
import re
from collections import Counter
from collections.abc import Iterator

from cutlayer.plan import casting, masking, safety
from cutlayer.plan.document import nearest
from cutlayer.plan.plan import Contents, Plan
from cutlayer.plan.schedule import SCHEDULES, Schedule
from cutlayer.plan.terms import FORMAT, WAYS, CodecTerms, Method, PartyTerms, Terms, Training, Way
from cutlayer.plan.topology import OWN, TOPOLOGIES, Edge, Topology

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
        *_codecs(terms),
        *safety.faults(terms),
        *(masking.faults(terms, summed=needs_aggregator(terms)) if terms.schedule in SCHEDULES else ()),
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
    yield from _overlap(terms)
    yield from _cached(terms)
    yield from _computing(terms)
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
    if terms.secure_aggregation and needs_aggregator(terms):
        sealing.update(terms.filling("client"))
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


def _overlap(terms: Terms) -> Iterator[str]:
    """Micro-batches, and steps, that are under way at the same time."""
    training, most = terms.training, terms.limits.live_tickets
    schedule = SCHEDULES.get(terms.schedule)
    alone = bool(schedule and schedule.joined) or (terms.turn == "batch")
    parts, stale = training.micro_batches, training.staleness
    if parts != "auto" and not 1 <= parts <= most:
        yield f'training.micro_batches = {parts}: "auto", or at least 1 and at most limits.live_tickets ({most})'
    if parts == "auto" and alone:
        yield (
            'training.micro_batches = "auto", but each turn is one step here, and nothing can be tried in it: say a '
            "number"
        )
    if not 0 <= training.in_flight <= most:
        yield f"training.in_flight = {training.in_flight}: 0 for all parts of a step, or at most {most}"
    if not 0 <= stale < most:
        yield f"training.staleness = {stale}: at least 0, and below limits.live_tickets ({most})"
    if stale and alone:
        yield f"training.staleness = {stale}, but a turn is one step here, and ends before the next begins: say 0"
    if stale and training.in_flight:
        yield f"training.staleness = {stale} needs all its steps in flight: leave training.in_flight at 0"


def _cached(terms: Terms) -> Iterator[str]:
    """Steps that each party takes by itself."""
    training, steps = terms.training, terms.training.cached_steps
    where = f"training.cached_steps = {steps}"
    if steps < 0:
        yield f"{where}: at least 0"
    if steps <= 0:
        return
    if terms.schedule in SCHEDULES and not SCHEDULES[terms.schedule].together:
        yield f"{where} is for joint, where several parties have columns of the same rows: leave it at 0"
    if training.micro_batches != 1:
        yield f"{where} keeps mini-batches whole: leave training.micro_batches at 1"
    if training.staleness:
        yield f"{where}, but with training.staleness steps are under way meanwhile: leave one of them at 0"
    if _losses(terms) > 1:
        yield f"{where} goes back from one loss, but {terms.topology} has {_losses(terms)} here: leave it at 0"


def _computing(terms: Terms) -> Iterator[str]:
    """Segments that are called otherwise than as they are."""
    training = terms.training
    if terms.topology not in casting.ROLES or not (training.autocast or training.compiled):
        return
    known = [segment.name for segment in terms.drawn().segments]
    for what in ("autocast", "compiled"):
        for name in getattr(training, what):
            if name not in known:
                yield f"training.{what}: {name!r} is no segment of {terms.topology}{nearest(name, known)}"
    if training.compiled and training.staleness and not [*casting.faults(terms)]:
        stale = Plan(terms=terms, contents=Contents.empty()).staleness
        for name in training.compiled:
            if stale.get(name):
                yield (
                    f"training.compiled: by training.staleness {name} is called by weights that it had before, and "
                    "what is compiled knows only the present ones: leave it out, or say staleness = 0"
                )


def _codecs(terms: Terms) -> Iterator[str]:
    """Whether what is to be encoded crosses, in that way, and by whom it can be remembered row by row."""
    if not terms.codec or (terms.topology not in TOPOLOGIES and terms.topology != OWN):
        return
    topology = terms.drawn()
    cuts = {edge.name: edge for edge in topology.cuts()}
    for edge, times in Counter(each.edge for each in terms.codec).items():
        if times > 1:
            yield f"codec: {times} entries for {edge or 'all cuts'}: say one"
    for each in terms.codec:
        where = f"codec of {each.edge or 'all cuts'}"
        if each.edge and each.edge not in cuts:
            yield f"{where}: nothing crosses there; what crosses: {', '.join(cuts)}"
            continue
        if each.feedback_mib < 1:
            yield f"{where}: feedback_mib = {each.feedback_mib}: a number of MiB, at least 1"
        named = [cuts[each.edge]] if each.edge else [e for e in cuts.values() if topology.source_kind(e) is None]
        for way in WAYS:
            yield from _feedback(topology, named, each, way)


def _feedback(topology: Topology, edges: list[Edge], codec: CodecTerms, way: Way) -> Iterator[str]:
    where = f"codec of {codec.edge or 'all cuts'}: {way}_feedback = {codec.feedback(way)!r}"
    if not codec.feedback(way):
        return
    if not codec.stages(way):
        yield f"{where}, but nothing is encoded that way: say {way} = …, or leave it out"
    having = {source.role for source in topology.sources}
    for edge in edges:
        sender = topology.role_of(edge.source if way == "forward" else edge.target)
        if codec.feedback(way) == "sample" and sender not in having:
            yield f'{where}, but {sender}, which sends on {edge.name}, does not know whose rows it sends: say "channel"'


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
