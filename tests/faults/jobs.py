"""The runs that are broken: small networks under five arrangements, with limits that let no test wait for long."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from cutlayer.party.report import report
from cutlayer.plan.limits import Limits
from cutlayer.plan.terms import CodecTerms, Method, ProbeTerms, SaveTerms, TurnCheckTerms
from cutlayer.simulation import simulate_plan
from equivalence.longhand import SECRETS
from equivalence.test_network_schedules import job as schedule_job
from equivalence.topology_jobs import JOBS as TOPOLOGY_JOBS
from faults.crew import Crew, Outcome
from processes.crew import Job

PARTIES = ("a", "b", "c", "server", "aggregator")
LIMITS = Limits(
    join_timeout_s=60,
    silence_timeout_s=4,
    reconnect_timeout_s=8,
    rejoin_timeout_s=30,
    progress_timeout_s=30,
    turn_timeout_s=60,
    handshake_timeout_s=10,
    deadline_s=3,
)
ROUNDS, EVERY_STEPS = 3, 2


def _with(job: Job, codec: tuple[CodecTerms, ...] = (), **training: Any) -> Job:
    return replace(job, terms=replace(job.terms, codec=codec, training=replace(job.terms.training, **training)))


def _scored(job: Job) -> Job:
    return _with(job, held_out=0.2)


JOBS: dict[str, Job] = {
    "vanilla": _scored(schedule_job("alternating", "vanilla")),
    "u_shaped": _scored(schedule_job("alternating", "u_shaped")),
    "vertical": TOPOLOGY_JOBS["vertical, a party with labels only"],
    "relay": _scored(schedule_job("relay", "vanilla")),
    "splitfed_v1": _scored(schedule_job("splitfed_v1", "vanilla", averaged_optimizer="keep")),
}


HALF_OF_EACH = Method(name="topk", options={"share": 0.5})
TRADING_JOBS: dict[str, Job] = {
    "staleness": _with(JOBS["u_shaped"], staleness=2),
    "cached_steps": _with(JOBS["vertical"], cached_steps=2),
    "feedback": _with(
        JOBS["vanilla"],
        (
            CodecTerms(
                forward=(HALF_OF_EACH,),
                backward=(HALF_OF_EACH,),
                forward_feedback="sample",
                backward_feedback="channel",
            ),
        ),
    ),
    "probes": replace(JOBS["u_shaped"], terms=replace(JOBS["u_shaped"].terms, probe=ProbeTerms(share=0.4, after=2))),
    "turn_check": _with(JOBS["vanilla"], turn_check=TurnCheckTerms(window=4, slack=1.0)),
}
"""Those in which more than weights is remembered from one step to the next."""


MORE_JOBS: dict[str, Job] = {
    "alternating": JOBS["vanilla"],
    "splitfed_v1": JOBS["splitfed_v1"],
    "splitfed_v2": _scored(schedule_job("splitfed_v2", "vanilla")),
    "splitfed_v3": _scored(schedule_job("splitfed_v3", "vanilla")),
    "parallel": _scored(schedule_job("parallel", "u_shaped", micro_batches=2)),
    "vertical": _with(JOBS["vertical"], party_dropout=0.2),
}
"""Those that a client may be missing from."""


def job_of(name: str, crew: Crew, jobs: Mapping[str, Job] = JOBS, rounds: int = ROUNDS, **terms: Any) -> Job:
    """A job with the crew's keys in its plan, a few rounds, saves within them."""
    job = jobs[name]
    changed = replace(
        job.terms,
        **{
            "training": replace(job.terms.training, rounds=rounds),
            "saves": SaveTerms(every_steps=EVERY_STEPS),
            "limits": LIMITS,
            **terms,
        },
    )
    return crew.pinned(replace(job, terms=changed))


class Undisturbed:
    """What the parties of a job have to show where nothing goes wrong: by a simulation, made once."""

    def __init__(self) -> None:
        self._known: dict[str, Mapping[str, dict[str, Any]]] = {}

    def of(self, job: Job) -> Mapping[str, dict[str, Any]]:
        digest = job.agreement().plan.digest
        if digest not in self._known:
            self._known[digest] = simulated(job)
        return self._known[digest]


def simulated(job: Job, **options: Any) -> Mapping[str, dict[str, Any]]:
    """The parties' reports of a simulation, in one thread as theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = simulate_plan(
            job.agreement(), job.data(), secrets={name: SECRETS[name] for name in job.terms.parties}, **options
        )
    finally:
        torch.set_num_threads(threads)
    return {name: report(party, result.meters[name], 0.0) for name, party in result.parties.items()}


def differences(outcome: Outcome, wanted: Mapping[str, dict[str, Any]], without: Collection[str] = ()) -> list[str]:
    """In what a run is not as it should be: weights, scores and their history, of each party, bit for bit."""
    found = []
    for name, member in outcome.members.items():
        if name in without:
            continue
        if member.failures or not member.report:
            found.append(f"{name} did not come to the end: {'; '.join(member.failures) or 'it was lost'}")
            continue
        got, due = _shown(member.report), _shown(wanted[name])
        found += [f"{name}: other {part}" for part in due if got[part] != due[part]]
    return found


def _shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """Of turns that are under way together, the order in which a server hears of their ends does not matter."""
    history = sorted(report["history"], key=lambda each: (each["round"], each["purpose"], each["party"]))
    return {"weights": report["weights"], "metrics": report["metrics"], "history": history}


undisturbed = cache(Undisturbed)
