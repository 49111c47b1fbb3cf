"""What a party does with a model's answers: they go into a table of its own."""

from collections.abc import Sequence
from pathlib import Path

from cutlayer.data.answers import write_answers
from cutlayer.party.run import Outcome


def write_answers_of(outcome: Outcome, path: Path, names: Sequence[str] | None = None) -> Path:
    """Write the answers of a party's prediction; `names` of classes, if it has them. Raises `DataError`."""
    plan = outcome.party.plan
    targets = {loss.name: plan.topology.target(loss.name) for loss in plan.topology.losses}
    return write_answers(
        path,
        outcome.party.answers,
        classes={name: plan.contents.classes.get(edge.source, 0) for name, edge in targets.items() if edge},
        ids=outcome.loader.ids if outcome.loader else None,
        names=names,
    )
