"""What must hold for what a plan says of defences, budgets and robust averages. Faults are sentences."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from cutlayer.plan.schedule import SCHEDULES
from cutlayer.plan.terms import Method, Terms
from cutlayer.plan.topology import OWN, TOPOLOGIES

AVERAGING: dict[str, dict[str, tuple[float, float]]] = {
    "median": {},
    "trimmed_mean": {"trim": (0.0, 0.5)},
    "norm_bound": {"factor": (0.0, float("inf"))},
}
"""Averages that a few bad shares cannot lead astray: the options of each, which are all needed, and what they lie
between."""


def faults(terms: Terms) -> Iterator[str]:
    """All of them; what needs the model is checked when the plan is drafted."""
    if terms.schedule not in SCHEDULES:
        return
    yield from _defences(terms)
    if terms.training.averaging is not None:
        yield from _averaging(terms, terms.training.averaging)


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
