"""Whether a plan's parties can play its topology: known names, roles that are filled, a graph that is sound."""

from collections import Counter
from collections.abc import Iterator

from cutlayer.plan import dag
from cutlayer.plan.document import nearest
from cutlayer.plan.schedule import LEGAL, SCHEDULES
from cutlayer.plan.terms import TOGETHER, Terms
from cutlayer.plan.topology import OWN, TOPOLOGIES, Topology


def faults(terms: Terms) -> Iterator[str]:
    """One sentence each."""
    yield from _topology(terms)
    yield from _parties(terms)


def _topology(terms: Terms) -> Iterator[str]:
    known = (*TOPOLOGIES, OWN)
    if terms.topology not in known:
        yield f"topology = {terms.topology!r} is unknown{nearest(terms.topology, known)}"
    if terms.schedule not in SCHEDULES:
        yield f"schedule = {terms.schedule!r} is unknown{nearest(terms.schedule, SCHEDULES)}"
    if terms.topology not in known:
        return
    if terms.schedule in SCHEDULES and terms.schedule not in LEGAL[terms.topology]:
        yield (
            f"the topology {terms.topology} does not go with the schedule {terms.schedule}; it goes with "
            f"{', '.join(sorted(LEGAL[terms.topology]))}"
        )
    if terms.topology != OWN and (terms.source or terms.segment or terms.edge):
        yield f'[[source]], [[segment]] and [[edge]] are for topology = "{OWN}", not for {terms.topology}'
    yield from _drawn(terms, terms.drawn())


def _drawn(terms: Terms, topology: Topology) -> Iterator[str]:
    """What is wrong with the graph itself, drawn for these parties."""
    yield from dag.faults(
        topology,
        roles=(*terms.parties, *(party.role for party in terms.parties.values()), *ROLES[terms.topology]),
        labels_leave=terms.labels_leave or terms.topology in SENDS_LABELS,
    )
    cuts = {"model": terms.model.cut} | {f"parties.{name}": party.cut for name, party in terms.parties.items()}
    for where, cut in cuts.items():
        yield from _cut(where, cut, topology)
    for source in topology.sources:
        if source.kind == "rows" and not terms.inputs_of(source.role):
            where = f"parties.{source.role}.input" if source.role in terms.parties else "[input]"
            yield f"what a row of {source.name} looks like is not said: give {where}"
    losses = {segment.name for segment in topology.losses}
    for what in ("losses", "loss_weights"):
        for name in getattr(terms.training, what).keys() - losses:
            yield f"training.{what}.{name}: {terms.topology} has no such loss{nearest(name, losses)}"


SENDS_LABELS = ("vanilla", "multi_hop", "decoupled", "semi_supervised", "bottleneck")
"""Topologies whose name says that labels go to the server."""


def _cut(where: str, cut: tuple[str, ...], topology: Topology) -> Iterator[str]:
    segments = [segment.name for segment in topology.segments]
    if cut and not topology.is_chain:
        yield (
            f"{where}.cut: {topology.name} is no chain that one network could be cut into; let build() return "
            f"Parts with a part for each segment ({', '.join(segments)})"
        )
    elif cut and len(cut) != len(segments) - 1:
        yield (
            f"{where}.cut names {len(cut)} layer(s), but {topology.name} has {len(segments)} segments "
            f"({', '.join(segments)}): name {len(segments) - 1}"
        )


ROLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("vanilla", "u_shaped", "decoupled", "semi_supervised", "bottleneck"), ("client", "server")),
    **dict.fromkeys(("vertical", "vertical_u_shaped"), ("client", "labels", "server")),
    "extended_vanilla": ("client", "labels", "middle", "server"),
    "multi_task": ("client", "server"),
    "multi_hop": ("client", "hop", "server"),
    OWN: (),
}
"""The roles that parties fill in each topology, beside the aggregator's."""
SEVERAL = {"client": (), "hop": (), "server": ("multi_task",)}
"""Roles that several parties may fill; if not always, then in these topologies."""


def _parties(terms: Terms) -> Iterator[str]:
    together = terms.schedule in SCHEDULES and SCHEDULES[terms.schedule].together and terms.topology != OWN
    filled = Counter(party.role for party in terms.parties.values())
    for name, party in terms.parties.items():
        if name == TOGETHER or (not together and filled[name] > (party.role == name)):
            yield f"parties.{name}: a party cannot be called so, since {name!r} has another meaning here"
    if terms.topology not in ROLES:
        return
    if terms.topology != OWN:
        yield from _filled(terms, (*ROLES[terms.topology], "aggregator"))
    yield from _server(terms)
    if terms.topology == OWN and terms.schedule in LEGAL[OWN]:
        yield from _own(terms, SCHEDULES[terms.schedule].together)
    if terms.schedule in SCHEDULES and SCHEDULES[terms.schedule].together:
        yield from _together(terms)
    elif terms.labels:
        yield f"labels = {terms.labels!r} means nothing under {terms.topology}: each client has the labels of its rows"


def _filled(terms: Terms, roles: tuple[str, ...]) -> Iterator[str]:
    for name, party in terms.parties.items():
        if party.role not in roles:
            yield f"parties.{name}.role = {party.role!r} is no role of {terms.topology}{nearest(party.role, roles)}"
    if not terms.filling("client"):
        yield 'no party has role = "client": at least one must bring rows'
    if "hop" in roles and not terms.filling("hop"):
        yield f'no party has role = "hop": {terms.topology} has at least one'
    for role in {"labels", "middle"}.intersection(roles):
        if len(terms.filling(role)) > 1 or (role == "middle" and not terms.filling(role)):
            yield f'{len(terms.filling(role))} parties have role = "{role}"; {terms.topology} has one'


def _own(terms: Terms, together: bool) -> Iterator[str]:
    """The roles of a topology of one's own leave no choice; only clients, with rows of their own, may be several."""
    for role in dict.fromkeys(node.role for node in terms.drawn().nodes):
        several = role not in terms.parties and len(terms.filling(role)) > 1
        if several and (together or role != "client"):
            told = f"under {terms.schedule} name the one party of each node"
            yield f"{len(terms.filling(role))} parties fill {role!r}: {told}"
    if not together:
        yield from _own_in_turns(terms)
    for source in () if together else terms.source:
        if source.role != "client" or not terms.filling("client"):
            yield (
                f"{source.name}.role = {source.role!r}: under {terms.schedule} rows are of parties in the role of "
                'client; where several have columns of the same rows, say schedule = "joint"'
            )


def _own_in_turns(terms: Terms) -> Iterator[str]:
    """Where clients take turns there is one server, which conducts and to which all that moves goes."""
    servers = terms.filling("server")
    if len(servers) != 1 or terms.conducting != servers[0]:
        yield f'under {terms.schedule} one party has role = "server", and it is the conductor'
    for segment in terms.segment:
        if segment.role in terms.filling("client"):
            yield (
                f"{segment.name}.role = {segment.role!r}: under {terms.schedule} each client has a replica of what is "
                'at one: say role = "client", or give that party another role'
            )


def _together(terms: Terms) -> Iterator[str]:
    """Under `joint` somebody has the labels."""
    if terms.topology == OWN:
        return
    if terms.labels and terms.topology == "multi_task":
        yield f"labels = {terms.labels!r} means nothing under multi_task: each server has the labels of its task"
    if terms.labels and terms.labels not in terms.parties:
        yield f"labels = {terms.labels!r} is no party of the plan{nearest(terms.labels, terms.parties)}"
    if terms.labels and terms.filling("labels") not in ((), (terms.labels,)):
        yield f'labels = {terms.labels!r}, but {terms.filling("labels")[0]} has role = "labels": leave one out'
    holder = terms.labels or next(iter(terms.filling("labels")), "")
    if terms.topology == "vertical_u_shaped" and (not holder or holder in terms.filling("server")):
        yield 'vertical_u_shaped keeps labels from the server: say labels = "NAME" of the party that has them'


def _server(terms: Terms) -> Iterator[str]:
    servers = terms.filling("server")
    several = terms.topology in SEVERAL["server"]
    if terms.topology == OWN:
        if not servers and not terms.conductor:
            yield 'conductor = "NAME" is missing: the party that all others can reach hands out turns'
    elif not servers or (len(servers) > 1 and not several):
        how_many = "at least" if several else "exactly"
        yield f'{len(servers)} parties have role = "server"; {terms.topology} has {how_many} one'
    if terms.conductor and terms.conductor not in terms.parties:
        yield f"conductor = {terms.conductor!r} is no party of the plan{nearest(terms.conductor, terms.parties)}"
    elif terms.conductor and servers and terms.conductor not in servers and terms.topology != OWN:
        yield f"conductor = {terms.conductor!r}: the conductor must be {servers[0]!r}, the one that all clients reach"
