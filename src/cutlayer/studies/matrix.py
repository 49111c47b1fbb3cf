"""Attacks × defences × cuts, each on a run of one's own: what leaks, and what the defence costs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from cutlayer.attack.attack import Attack
from cutlayer.attack.hijack import Insider
from cutlayer.attack.traffic import Score
from cutlayer.defence.registry import METHODS
from cutlayer.errors import PlanError
from cutlayer.party.agreement import Agreement, draft
from cutlayer.plan.methods import methods_from
from cutlayer.plan.plan import Contents, Plan
from cutlayer.plan.terms import WAYS, DefenceTerms, Method, Terms
from cutlayer.simulation import Result, simulate_plan
from cutlayer.studies.exposing import Found, Inside, attacked, knowledge_of
from cutlayer.studies.recording import Recorder

NONE, PLANNED = "none", "as planned"
Data = Mapping[str, Dataset[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A run to attack: where the model is cut, and what defends it, as a person writes it."""

    cut: tuple[str, ...]
    defence: str = NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What an attack made of a case, and what the case cost: accuracy (the mean over owners), bytes, seconds."""

    case: Case
    found: Found
    accuracy: float | None
    nbytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked of a model and its rows: all cases, all attacks."""

    terms: Terms
    model: nn.Module
    data: Data
    on_traffic: Sequence[Attack]
    insiders: Sequence[Insider] = ()
    seed: int = 0
    device: str = "cpu"


def matrix(question: Question, cases: Sequence[Case], progress: Callable[[str], None]) -> Iterator[Cell]:
    """A cell for each case and attack. An insider has a run of its own, since it changes it or learns in it."""
    passive, insiders = question.on_traffic, question.insiders
    for case in cases:
        agreement = draft(terms_of(question.terms, case), question.model)
        progress(f"cut {', '.join(case.cut)}, {case.defence}: training")
        recorder = Recorder()
        start = time.perf_counter()
        result = _run(question, agreement, recorder, None)
        seconds = time.perf_counter() - start
        accuracy, nbytes = accuracy_of(result), sum(each["sent"] for each in result.bytes.values())
        progress(f"cut {', '.join(case.cut)}, {case.defence}: attacks")
        for found in attacked(recorder.traffic, passive, _knower(question, result, recorder), question.seed):
            yield Cell(case=case, found=found, accuracy=accuracy, nbytes=nbytes, seconds=seconds)
        for insider in insiders:
            progress(f"cut {', '.join(case.cut)}, {case.defence}: {insider.name}")
            for found in _inside(question, agreement, insider, result, recorder):
                yield Cell(case=case, found=found, accuracy=accuracy, nbytes=nbytes, seconds=seconds)


def _knower(question: Question, result: Result, recorder: Recorder) -> Callable[[str], Any]:
    plan = result.agreement.plan

    def knows(party: str) -> Any:
        owner = party if party in plan.owners else plan.owners[0]
        return knowledge_of(plan, result.segments_for(owner), party, recorder.aside(party), question.seed)

    return knows


def _inside(
    question: Question, agreement: Agreement, insider: Insider, honest: Result, seen: Recorder
) -> Iterator[Found]:  # fmt: skip
    """The run once more with an insider at the conductor, and what it makes of the first client's rows."""
    plan = agreement.plan
    victim = plan.terms.filling("client")[0]
    edge = next((e.name for e in plan.topology.cuts() if plan.topology.source_kind(e) is None), "")
    knowledge = _knower(question, honest, seen)(victim)
    if knowledge.auxiliary is None:
        yield Found(party=victim, edge=edge, attack=insider.name, reason="it needs auxiliary")
        return
    recorder, inside = Recorder(most=1024), Inside(insider, knowledge, question.seed)
    _run(question, agreement, recorder, inside)
    for (party, at), traffic in recorder.traffic.items():
        if party == victim and traffic.activations is not None:
            yield Found(party=party, edge=at, attack=insider.name, score=insider.score(traffic))


def _run(question: Question, agreement: Agreement, recorder: Recorder, inside: Inside | None) -> Result:
    return simulate_plan(
        agreement,
        question.data,
        taps=(recorder,),
        hijacks={} if inside is None else {agreement.plan.conductor: inside},
        device=question.device,
    )


def accuracy_of(result: Result) -> float | None:
    """The mean over the owners of rows, on rows held out; None where answers are not right or wrong."""
    found = [scores["accuracy"] for scores in result.metrics.values() if "accuracy" in scores]
    return fmean(found) if found else None


def terms_of(terms: Terms, case: Case) -> Terms:
    """The terms of a case. Raises `PlanError`."""
    model = replace(terms.model, cut=case.cut or terms.model.cut)
    if case.defence == PLANNED:
        return replace(terms, model=model, budget=())
    defended = replace(terms, model=model, defence=(), budget=())
    return replace(defended, defence=defences_from(case.defence, Plan(terms=defended, contents=Contents.empty())))


def defences_from(text: str, plan: Plan) -> tuple[DefenceTerms, ...]:
    """`gaussian(clip=1,sigma=0.5)+max_norm()` on the cuts of a plan: each where it belongs. Raises `PlanError`.

    What defends activations goes forward on all cuts, what defends gradients back; what is for labels goes where those
    cross, and how a segment learns goes to the clients' segments.
    """
    if text == NONE:
        return ()
    methods = methods_from(text)
    if unknown := [method.name for method in methods if method.name not in METHODS]:
        raise PlanError(f"{unknown[0]!r} is no defence; known are {', '.join(METHODS)}")
    crossing = [m for m in methods if METHODS[m.name].kind != "update" and not METHODS[m.name].for_labels]
    ways = {way: tuple(m for m in crossing if _way(m) == way) for way in WAYS}
    found = [DefenceTerms(forward=ways["forward"], backward=ways["backward"])] if crossing else []
    if labelling := tuple(method for method in methods if METHODS[method.name].for_labels):
        edges = [edge.name for edge in plan.topology.cuts() if plan.topology.source_kind(edge) == "labels"]
        if not edges:
            raise PlanError(f"{labelling[0].name} is for labels that cross, and none do in {plan.topology.name}")
        found += [DefenceTerms(edge=edge, forward=labelling) for edge in edges]
    if learning := tuple(method for method in methods if METHODS[method.name].kind == "update"):
        found += [DefenceTerms(segment=segment, update=learning) for segment in plan.client_segments]
    return tuple(found)


def _way(method: Method) -> str:
    return "forward" if "forward" in METHODS[method.name].ways else "backward"


def leak_of(score: Score) -> float:
    """From 0, what guessing gives, to 1 for the best there can be: for pictures and tables, in which units differ."""
    if score.better == "smaller":
        return max(0.0, 1 - score.value / score.chance) if score.chance else 0.0
    return max(0.0, (score.value - score.chance) / (1 - score.chance)) if score.chance < 1 else 0.0
