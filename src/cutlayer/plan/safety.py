"""What must hold for what a plan says of defences, budgets, probes, and clients that are not trusted. Faults are
sentences."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cutlayer.plan.schedule import SCHEDULES
from cutlayer.plan.terms import Method, ProbeTerms, Terms, TurnCheckTerms
from cutlayer.plan.topology import OWN, TOPOLOGIES

AVERAGING: dict[str, dict[str, tuple[float, float]]] = {
    "median": {},
    "trimmed_mean": {"trim": (0.0, 0.5)},
    "norm_bound": {"factor": (0.0, float("inf"))},
}
"""Averages that a few bad shares cannot lead astray: the options of each, which are all needed, and what they lie
between."""

MOST_PROBES = 0.5
CHECKED = ("alternating", "splitfed_v2")
"""Schedules under which turns can be judged: clients train one shared segment of the server's after another."""


def faults(terms: Terms) -> Iterator[str]:
    """All of them; what needs the model is checked when the plan is drafted."""
    if terms.schedule not in SCHEDULES:
        return
    yield from _defences(terms)
    if terms.training.averaging is not None:
        yield from _averaging(terms, terms.training.averaging)
    if terms.probe != ProbeTerms():
        yield from _probe(terms)
    if terms.training.turn_check != TurnCheckTerms():
        yield from _turn_check(terms)


def _defences(terms: Terms) -> Iterator[str]:
    if terms.topology not in TOPOLOGIES and terms.topology != OWN:
        return
    cuts = [edge.name for edge in terms.drawn().cuts()]
    yield from _twice("defence", [each.edge or each.segment or "all cuts" for each in terms.defence])
    yield from _twice("budget", [f"{each.channel} of {each.party}" for each in terms.budget])
    for each in terms.defence:
        if each.segment:
            if each.edge or each.forward or each.backward:
                yield f"defence of the segment {each.segment}: say update = … alone; edges have entries of their own"
        elif each.update:
            yield f"defence of {each.edge or 'all cuts'}: update is how a segment learns: say segment = …"
        elif each.edge and each.edge not in cuts:
            yield f"defence of {each.edge}: nothing crosses there; what crosses: {', '.join(cuts)}"


def _twice(what: str, places: Sequence[str]) -> Iterator[str]:
    for place, times in Counter(places).items():
        if times > 1:
            yield f"{what}: {times} entries for {place}: say one"


def _averaging(terms: Terms, method: Method) -> Iterator[str]:
    where = "training.averaging"
    if not SCHEDULES[terms.schedule].averaged:
        yield f"{where} means nothing under {terms.schedule}: it is for splitfed_v1, splitfed_v2 and splitfed_v3"
    if method.name in AVERAGING:
        yield from _options(f"{where} {method.name}", method, AVERAGING[method.name])
    else:
        yield f"{where} = {method.name!r} is unknown: known are {', '.join(AVERAGING)}"
    if terms.training.averaged_optimizer == "average":
        yield f'{where} is for weights: say training.averaged_optimizer = "reset" or "keep"'


def _options(where: str, method: Method, known: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for option in method.options.keys() - known.keys():
        yield f"{where}: {option} is no option of it; known are {', '.join(known) or 'none'}"
    for option, (low, high) in known.items():
        if option not in method.options:
            yield f"{where}: {option} is missing"
        elif not _lies(method.options[option], low, high):
            yield f"{where}: {option} = {method.options[option]!r} must be above {low:g} and below {high:g}"


def _lies(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def _probe(terms: Terms) -> Iterator[str]:
    """A probe's owner has to have labels, to step by itself, and to tell nothing by the labels that it makes up."""
    probe, schedule = terms.probe, SCHEDULES[terms.schedule]
    if not 0 < probe.share <= MOST_PROBES:
        yield f"probe.share = {probe.share}: a chance above 0 and at most {MOST_PROBES}; leave [probe] out for none"
    if probe.after < 0:
        yield f"probe.after = {probe.after}: a number of steps, at least 0"
    if schedule.joined or schedule.together:
        yield (
            f"probe means nothing under {terms.schedule}: it is for schedules in which a client's mini-batch is a step "
            "by itself"
        )
    if terms.training.staleness:
        yield "probe with training.staleness: a client must know whose gradient it steps on; leave one of them out"
    if terms.topology == "decoupled":
        yield "probe means nothing under the topology decoupled: no gradient comes back that could tell anything"
    elif terms.topology in TOPOLOGIES or terms.topology == OWN:
        yield from _defended_labels(terms)


def _defended_labels(terms: Terms) -> Iterator[str]:
    topology = terms.drawn()
    labels = {edge.name for edge in topology.cuts() if topology.source_kind(edge) == "labels"}
    for each in terms.defence:
        if each.edge in labels and each.forward:
            yield (
                f"probe with a defence of {each.edge}: labels that change from one release to the next tell which of "
                "them are made up, and so the others; leave one of them out"
            )


def _turn_check(terms: Terms) -> Iterator[str]:
    """What its numbers may be says the check itself (`model/rounds`)."""
    where = "training.turn_check"
    if terms.schedule not in CHECKED or terms.turn != "epoch":
        yield (
            f'{where} is for {" and ".join(CHECKED)} with turn = "epoch": it needs a segment of the server\'s that '
            "one client trains after another"
        )
    if (terms.topology in TOPOLOGIES or terms.topology == OWN) and any(e.every > 1 for e in terms.drawn().edges):
        yield f"{where}: every mini-batch must reach the segment that is judged; say training.upload_every = 1"
    if terms.training.staleness:
        yield f"{where} with training.staleness: a turn must be through before it is judged; leave one of them out"
