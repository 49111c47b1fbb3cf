"""Claim: a network cut over joined sessions learns as the same network uncut, on the same mini-batches."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.plan.batches import Batch
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Train, TurnUnit
from cutlayer.protocol.events import Done, Movement, Replica, Run, Step
from cutlayer.protocol.messages import Rows, Ticket
from protocol.joined import Wire
from protocol.plans import CLIENTS, make_plan, turns_of
from protocol.words import Parcel, Sums

Array = NDArray[np.float64]
Gradients = tuple[float, list[Array]]

LR = 0.05
ROWS = {CLIENTS[0]: Rows(11, 5), CLIENTS[1]: Rows(4, 0), CLIENTS[2]: Rows(7, 6)}
SIZES = {"bottom": (4, 6), "middle": (6, 6), "top": (6, 2), "head": (6, 2)}


def weights(segment: str) -> Array:
    return np.random.default_rng(list(segment.encode())).normal(size=SIZES[segment])


def rows_of(owner: str, source: str, *, held_out: bool) -> Array:
    seed = [*owner.encode(), source == "y", held_out]
    brought = ROWS[owner].held_out if held_out else ROWS[owner].train
    return np.random.default_rng(seed).normal(size=(brought, 4 if source == "x" else 2))


class Numbers:
    """A party's rows, and its segments: a matrix and tanh, or a matrix and half the sum of squared errors."""

    def __init__(self) -> None:
        self.weights: dict[Replica, Array] = {}
        self._kept: dict[tuple[Ticket, str], tuple[Array, Array]] = {}
        self._gradients: defaultdict[Replica, Any] = defaultdict(float)

    def run(self, run: Run) -> tuple[Any, Sums | None]:
        if run.direction == "load":
            assert isinstance(run.batch, Batch)
            whole = rows_of(run.ticket.owner, run.node, held_out=run.batch.held_out)
            return whole[run.batch.start : run.batch.stop], None
        return self._forward(run) if run.direction == "forward" else (self._backward(run), None)

    def _forward(self, run: Run) -> tuple[Array, Sums | None]:
        matrix = self.weights.setdefault(run.replica, weights(run.node))
        (x,) = (value for edge, value in run.inputs.items() if edge[0] != "y")
        labels = [value for edge, value in run.inputs.items() if edge[0] == "y"]
        z = x @ matrix
        slope = z - labels[0] if labels else 1 - np.tanh(z) ** 2
        if run.ticket.purpose == "train":
            self._kept[run.ticket, run.node] = x, slope
        if not labels:
            return np.tanh(z), None
        return z, {run.ticket.owner: {"loss": float((slope**2).sum() / 2), "normaliser": float(len(z))}}

    def _backward(self, run: Run) -> dict[str, Array]:
        x, slope = self._kept.pop((run.ticket, run.node))
        for gradient in run.inputs.values():
            slope = gradient * slope
        self._gradients[run.replica] = self._gradients[run.replica] + x.T @ slope
        source = {"top": "bottom", "middle": "bottom", "head": "middle", "bottom": "x"}[run.node]
        return {f"{source}->{run.node}": slope @ self.weights[run.replica].T}

    def step(self, step: Step) -> None:
        replica = step.replica
        self.weights[replica] = self.weights[replica] - LR * self._gradients.pop(replica) / step.normaliser
        assert not [node for _, node in self._kept if node == replica[0]]

    def move(self, movement: Movement) -> list[Parcel]:
        raise AssertionError(f"nothing moves here, but {movement}")


def uncut(matrices: list[Array], x: Array, y: Array) -> Gradients:
    """The sum of losses, and the gradients of their mean, of the whole network."""
    inputs, h = [], x
    for matrix in matrices[:-1]:
        inputs.append(h)
        h = np.tanh(h @ matrix)
    error = h @ matrices[-1] - y
    gradients, slope = [h.T @ error / len(x)], error @ matrices[-1].T / len(x)
    for matrix, entered in zip(matrices[-2::-1], inputs[::-1], strict=True):
        slope = slope * (1 - np.tanh(entered @ matrix) ** 2)
        gradients.append(entered.T @ slope)
        slope = slope @ matrix.T
    return float((error**2).sum() / 2), gradients[::-1]


def longhand(plan: Plan) -> tuple[dict[tuple[str, str], Array], dict[tuple[int, str], float]]:
    """Own client segments, shared server segments, one mini-batch after another: weights, and losses by turn."""
    segments = [segment.name for segment in plan.topology.segments]
    shared = {segment.name for segment in plan.topology.segments if segment.role == "server"}
    known = {(name, owner): weights(name) for name in segments for owner in ("lab", *ROWS)}
    losses: defaultdict[tuple[int, str], float] = defaultdict(float)
    size = plan.terms.training.batch_size
    for number, work in turns_of(plan, ROWS).items():
        for owner in work.parties:
            keys = [(name, "lab" if name in shared else owner) for name in segments]
            x, y = (rows_of(owner, source, held_out=not isinstance(work, Train)) for source in "xy")
            steps = range(work.first, work.first + work.steps) if isinstance(work, Train) else range(len(x))
            for step in steps:
                part = slice(step * size, (step + 1) * size) if isinstance(work, Train) else slice(step, step + 1)
                loss, gradients = uncut([known[key] for key in keys], x[part], y[part])
                losses[number, owner] += loss
                if isinstance(work, Train):
                    for key, gradient in zip(keys, gradients, strict=True):
                        known[key] = known[key] - LR * gradient
    return known, losses


@pytest.mark.parametrize("turn", ["epoch", "batch"])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_different_clients_with_unequal_rows_learn_as_uncut(topology: str, micro_batches: int, turn: TurnUnit) -> None:
    plan = make_plan(topology, clients=3, rounds=3, micro_batches=micro_batches, turn=turn)
    known, losses = longhand(plan)
    for seed in range(3):
        workers: dict[str, Numbers] = defaultdict(Numbers)
        wire = Wire(plan, ROWS, seed=seed, prompt=bool(seed), worker=workers.__getitem__).start().run()
        assert {type(ending) for ending in wire.endings().values()} == {Done}
        learned = {replica: matrix for worker in workers.values() for replica, matrix in worker.weights.items()}
        assert len(learned) == {"vanilla": 4, "u_shaped": 7}[topology]
        for replica, matrix in learned.items():
            np.testing.assert_allclose(matrix, known[replica], rtol=0, atol=1e-12)
        told = {(tell.turn, owner): sums for tell in wire.tells("lab") for owner, sums in tell.sums.items()}
        assert told.keys() == losses.keys()
        for key, sums in told.items():
            assert sums["loss"] == pytest.approx(losses[key], rel=0, abs=1e-12 * max(1.0, losses[key]))
