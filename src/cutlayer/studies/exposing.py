"""Attacks on a run of one's own: which of them a recording allows, with what an attacker may know besides."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutlayer.attack.attack import Attack, Knowledge
from cutlayer.attack.hijack import Insider
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import CutlayerError
from cutlayer.observe.tap import Seen
from cutlayer.plan.plan import Plan
from cutlayer.studies.recording import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What an attack made of one party's traffic on an edge; or why it could not be tried there."""

    party: str
    edge: str
    attack: str
    score: Score | None = None
    reason: str = ""


def attacked(
    traffic: Mapping[Place, Traffic], attacks: Sequence[Attack], knows: Callable[[str], Knowledge], seed: int
) -> Iterator[Found]:
    """Each attack on each recording; `knows`: what an attacker on a party's rows knows besides."""
    for (party, edge), recorded in traffic.items():
        knowledge = knows(party)
        for attack in attacks:
            if missing := _missing(attack, recorded, knowledge):
                yield Found(party=party, edge=edge, attack=attack.name, reason=f"it needs {', '.join(missing)}")
                continue
            try:
                score = attack.run(recorded, knowledge, seed)
            except CutlayerError as error:
                yield Found(party=party, edge=edge, attack=attack.name, reason=str(error))
            else:
                yield Found(party=party, edge=edge, attack=attack.name, score=score)


def _missing(attack: Attack, traffic: Traffic, knowledge: Knowledge) -> list[str]:
    there = {
        "activations": traffic.activations is not None,
        "gradients": traffic.gradients is not None,
        "inputs": traffic.inputs is not None,
        "labels": traffic.labels is not None,
        "auxiliary": knowledge.auxiliary is not None,
        "bottom": knowledge.bottom is not None,
        "known bottom": knowledge.known is not None,
        "top": knowledge.top is not None,
    }
    return sorted(need for need in attack.needs if not there[need])


def knowledge_of(
    plan: Plan,
    segments: Mapping[str, nn.Module],
    party: str,
    aside: tuple[Tensor, Tensor | None] | None,
    seed: int,
) -> Knowledge:
    """What an attacker on a party's rows may know: the model's parts by the plan, their weights, some rows like these.

    `segments` are as they were trained; `aside` are rows that were held out of training.
    """
    mine = [name for name in segments if plan.holds(party, plan.topology.segment(name).role)]
    others = [name for name in segments if name not in mine]
    bottom, top = (segments[names[0]] if names else None for names in (mine, others))
    pixels = (0.0, 1.0)
    if aside is not None and aside[0].is_floating_point() and len(aside[0]):
        pixels = (float(aside[0].min()), float(aside[0].max()))
    return Knowledge(
        auxiliary=aside,
        bottom=None if bottom is None else _fresh(bottom, seed),
        known=bottom,
        top=None if top is None else _fresh(top, seed + 1),
        classes=max(plan.contents.classes.values(), default=0),
        pixels=pixels,
    )


def _fresh(module: nn.Module, seed: int) -> Callable[[], nn.Module]:
    """Makes modules like this one with weights of their own."""

    def make() -> nn.Module:
        made = copy.deepcopy(module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for each in made.modules():
                if callable(reset := getattr(each, "reset_parameters", None)):
                    reset()
        return made

    return make


class Inside:
    """An insider in the place of a run's server: answers for it, or looks on."""

    def __init__(self, insider: Insider, knowledge: Knowledge, seed: int) -> None:
        self.insider = insider
        self._knowledge, self._seed, self._begun = knowledge, seed, False

    def __call__(self, seen: Seen, module: nn.Module) -> Tensor | None:
        """What is sent down instead of the server's gradient; None: the gradient as it is."""
        if seen.way != "backward" or not seen.inputs or seen.ticket.purpose != "train":
            return None
        activations = seen.inputs[0].detach()
        if not self._begun:
            self.insider.begin(self._knowledge, activations, self._seed)
            self._begun = True
        answer = getattr(self.insider, "answer", None)
        if answer is not None:
            given: Tensor = answer(activations, seen.labels)
            return given
        watch = getattr(self.insider, "watch")  # noqa: B009 (an onlooker, since it does not answer)
        watch(activations, seen.labels, module)
        return None
