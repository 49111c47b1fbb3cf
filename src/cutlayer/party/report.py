"""What a party has to show after a run: metrics, bytes, times, versions, weight digests. Plain data, ready for JSON."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from cutlayer.model.replica import state_digest
from cutlayer.observe.meter import Meter
from cutlayer.party.party import Party


def report(party: Party, meter: Meter, seconds: float) -> dict[str, Any]:
    """One party's run as JSON-ready data. Times are seconds of its own thread; bytes are frames on its channels."""
    terms = party.plan.terms
    return {
        "party": party.name,
        "plan": party.plan.digest,
        "name": terms.name,
        "topology": terms.topology,
        "schedule": terms.schedule,
        "ended": "as planned" if party.over and party.error is None else str(party.error or "unfinished"),
        "rows": {"train": party.session.rows.train, "held_out": party.session.rows.held_out},
        "metrics": meter.last_scores(),
        "history": [
            {"round": s.round, "purpose": s.purpose, "party": s.owner, **s.metrics}
            for s in sorted(meter.history, key=lambda score: (score.turn, score.owner))
        ],
        "members": [asdict(each) for each in party.session.start.log],
        "bytes": {
            "sent": party.sent_bytes,
            "received": party.received_bytes,
        },
        "crossings": [
            asdict(crossing) | {"shapes": [str(shape) for shape in crossing.shapes]}
            for crossing in meter.crossings.values()
        ],
        "times": {"total": seconds} | {name: round(spent, 6) for name, spent in sorted(meter.seconds.items())},
        "stale": {str(steps): count for steps, count in sorted(meter.stale.items())},
        "cached": {str(steps): count for steps, count in sorted(meter.cached.items())},
        "micro_batches": meter.paced.micro_batches if meter.paced else terms.training.micro_batches,
        "moved": [asdict(moved) for moved in meter.moved.values()],
        "privacy": party.accounting.lines(),
        "weights": {
            "/".join(replica): state_digest(segment.replica.module.state_dict())
            for replica, segment in sorted(party.segments.items())
        },
        "versions": versions(),
    }


def versions() -> dict[str, str | int]:
    """What equal bits depend on."""
    return {
        "cutlayer": version("cutlayer"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
