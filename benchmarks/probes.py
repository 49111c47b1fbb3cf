"""Do probes find a server that hijacks a client, and do they leave honest ones alone? On MNIST, in runs of the product.

    python benchmarks/probes.py [--data FILE.npz] [--honest 20] [--attacked 10] [--steps 400] [--share 0.1] [--after 60]

FILE has `x_train y_train`, uint8 images (default: ../shared/data/mnist.npz, else the environment's CUTLAYER_DATA). The
runs go through the settings of `monitor.py` in turn (but noise, which has its own defence there), each with weights,
rows and secrets of its own. The attack is FSHA with narrow networks, from the first step on. An attacked run ends at
the alarm; an honest one goes on to its end.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.fsha import Fsha
from cutlayer.errors import RunError
from cutlayer.observe.facts import Alarmed, Fact, Leaked
from cutlayer.plan.terms import DefenceTerms, Method, ProbeTerms
from cutlayer.studies.exposing import Inside
from monitor import CLASSES, OWN, SETTINGS, Row, Setting, bottom, found, load, own_rows, table, top


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MNIST as .npz")
    parser.add_argument("--honest", type=int, default=20)
    parser.add_argument("--attacked", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--after", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    args = parser.parse_args()
    path = found(args.data)
    if path is None:
        print("skipped: no MNIST; name it with --data or CUTLAYER_DATA")
        return
    torch.set_num_threads(1)
    data, probe = load(path), ProbeTerms(share=args.share, after=args.after)
    rows = []
    for attacked, count in {True: args.attacked, False: args.honest}.items():
        for number in range(count):
            setting = SETTINGS[number % len(SETTINGS)]
            rows.append(run(setting, probe, data, attacked=attacked, seed=args.seed + number, steps=args.steps))
            print(json.dumps(asdict(rows[-1]), ensure_ascii=False), file=sys.stderr, flush=True)
    print(
        json.dumps([asdict(row) for row in rows], ensure_ascii=False)
        if args.json
        else table(rows, args.steps, "least mean score", least)
    )


def run(
    setting: Setting, probe: ProbeTerms, data: tuple[Tensor, Tensor], *, attacked: bool, seed: int, steps: int
) -> Row:
    torch.manual_seed(seed)
    images, labels = data
    labels = (labels == 3).long() if setting.binary else labels
    places = own_rows(setting, labels)
    drawn = places[torch.randint(len(places), (setting.batch * steps // 2,))]
    model = nn.Sequential(bottom(), top(setting.top, CLASSES))
    facts: list[Fact] = []
    attack = Inside(Fsha(width=8, blocks=2), Knowledge(auxiliary=(images[OWN:], None)), seed)
    method = {"name": "Adam", "lr": setting.lr} if setting.adam else {"name": "SGD", "lr": setting.lr, "momentum": 0.9}
    began = time.perf_counter()
    try:
        simulate(
            model,
            cut="0",
            data={"hospital-a": TensorDataset(images[drawn], labels[drawn])},
            optimizer=method,
            batch_size=setting.batch,
            rounds=2,
            held_out=0.0,
            seed=seed,
            probe=probe,
            defence=noise(setting.noise),
            on_alarm="end" if attacked else "tell",
            observers=[facts.append],
            hijacks={"server": attack} if attacked else None,
        )
    except RunError:
        if not attacked:
            raise
    alarm = next((fact.batches for fact in facts if isinstance(fact, Alarmed)), None)
    scores = [fact.value for fact in facts if isinstance(fact, Leaked)]
    means = [sum(scores[at - 10 : at]) / 10 for at in range(10, len(scores) + 1)]
    return Row(
        setting=setting.name, attacked=attacked, seed=seed, alarm=alarm, scores=len(scores),
        lowest=min(means, default=1.0), seconds=time.perf_counter() - began,
    )  # fmt: skip


def noise(deviation: float) -> tuple[DefenceTerms, ...]:
    """So much of it on each number of an activation."""
    method = Method(name="gaussian", options={"clip": 0.0, "sigma": deviation})
    return (DefenceTerms(forward=(method,)),) if deviation else ()


def least(honest: Sequence[Row]) -> str:
    return f"{min(row.lowest for row in honest):.2f}" if honest else ""


if __name__ == "__main__":
    main()
