"""Faults drawn by a seed: of any kind, at any act that a party of the job is seen to do."""

import random
from collections.abc import Mapping

from faults.faults import FRAME, LINK_KINDS, Fault

KILL_SHARE, STOP_SHARE = 0.6, 0.1
STOPPED_S, DELAYED_S = (0.2, 6.0), (0.05, 1.0)
AGAIN_SHARE = 0.2
"""How often a fault strikes a second life."""

Acts = Mapping[str, Mapping[str, int]]
"""How many acts of each kind each party does where nothing goes wrong."""


def draw(dice: random.Random, acts: Acts, count: int) -> tuple[Fault, ...]:
    """So many faults; some later ones may find that there is no such act any more."""
    faults: dict[tuple[str, str, int, int], Fault] = {}
    while len(faults) < count:
        life = 2 if faults and dice.random() < AGAIN_SHARE else 1
        fault = _one(dice, acts, life)
        faults[fault.party, fault.at, fault.number, fault.life] = fault
    return tuple(faults.values())


def _one(dice: random.Random, acts: Acts, life: int) -> Fault:
    party = dice.choice(sorted(acts))
    kinds = sorted(acts[party].keys() - {FRAME})
    share = dice.random()
    if share >= KILL_SHARE + STOP_SHARE:
        at, kind = FRAME, dice.choice(LINK_KINDS)
    else:
        at, kind = dice.choice(kinds), "kill" if share < KILL_SHARE else "stop"
    spans = {"stop": STOPPED_S, "delay": DELAYED_S}
    seconds = round(dice.uniform(*spans[kind]), 2) if kind in spans else 0.0
    number = dice.randint(1, acts[party][at])
    return Fault(kind=kind, party=party, at=at, number=number, life=life, seconds=seconds)
