"""Recordings: what a peer saw at a cut of a run of one's own, kept so that attacks can be tried on it."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError
from cutlayer.observe.tap import Seen

Place = tuple[str, str]
"""A party whose rows crossed, and the edge."""


class Recorder:
    """A tap that keeps what a party's activations and their gradients were, of the last `most` rows in training.

    What the rows meant, inputs and labels, is kept beside them: a recording is as secret as the rows themselves.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._parts: defaultdict[Place, dict[tuple[object, ...], dict[str, Tensor]]] = defaultdict(dict)
        self._counted: defaultdict[Place, int] = defaultdict(int)
        self._aside: defaultdict[str, dict[int, tuple[Tensor, Tensor | None]]] = defaultdict(dict)

    def __call__(self, seen: Seen) -> None:
        if not seen.tensor.is_floating_point() or not seen.tensor.dim():
            return
        if seen.ticket.purpose != "train":
            if seen.sent and seen.inputs and seen.way == "forward":
                labels = None if seen.labels is None else seen.labels.cpu().clone()
                self._aside[seen.party][seen.ticket.step] = (seen.inputs[0].cpu().clone(), labels)
            return
        ticket = seen.ticket
        key = (ticket.turn, ticket.owner, ticket.step, ticket.micro)
        if (seen.way == "forward") == seen.sent:  # who has the rows sends activations and gets gradients
            self._keep(seen, key, "activations" if seen.sent else "gradients")
        elif seen.sent and seen.labels is not None:  # who has the labels sends gradients
            self._keep(seen, key, "gradients")

    def _keep(self, seen: Seen, key: tuple[object, ...], what: str) -> None:
        place = (seen.party, seen.edge)
        parts = self._parts[place]
        if key not in parts:
            parts[key] = {}
            self._counted[place] += len(seen.tensor)
        part = parts[key]
        part[what] = seen.tensor.detach().cpu().clone()
        if seen.inputs and seen.sent and what == "activations":
            part["inputs"] = seen.inputs[0].cpu().clone()
        if seen.labels is not None:
            part["labels"] = seen.labels.cpu().clone()
        if seen.places is not None:
            part["rows"] = seen.places.cpu().clone()
        while self._counted[place] > self._most and len(parts) > 1:
            first = parts.pop(next(iter(parts)))
            self._counted[place] -= len(next(iter(first.values())))

    @property
    def traffic(self) -> Mapping[Place, Traffic]:
        """What was kept, by party and edge; of what not every mini-batch has there is none."""
        return {place: _joined(list(parts.values())) for place, parts in self._parts.items() if parts}

    def aside(self, party: str) -> tuple[Tensor, Tensor | None] | None:
        """The rows that a party held out, and their labels: like those it trained on, and others."""
        parts = [part for _, part in sorted(self._aside[party].items())]
        if not parts:
            return None
        labels = [labels for _, labels in parts if labels is not None]
        return torch.cat([inputs for inputs, _ in parts]), torch.cat(labels) if len(labels) == len(parts) else None

    def save(self, folder: Path) -> list[Path]:
        """A file for each party and edge in a folder, which only its owner can read; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        paths = []
        for (party, edge), traffic in self.traffic.items():
            path = folder / f"{party}-on-{edge.replace('->', '-to-')}.safetensors"
            traffic.save(path)
            path.chmod(0o600)
            paths.append(path)
        return paths


def _joined(parts: list[dict[str, Tensor]]) -> Traffic:
    complete = [name for name in parts[0] if all(name in part for part in parts)]
    if not complete:
        raise DataError("the recording has no whole mini-batch: record a longer run")
    steps = torch.cat([torch.full((len(part[complete[0]]),), step) for step, part in enumerate(parts)])
    return Traffic(steps=steps, **{name: torch.cat([part[name] for part in parts]) for name in complete})
