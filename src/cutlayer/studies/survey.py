"""A survey: what each possible cut of a model costs on this machine. The slow part of advice; it knows no link."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cutlayer.codec.codec import Codec
from cutlayer.data.loader import Loader
from cutlayer.errors import DataError
from cutlayer.model.methods import batch_norm_layers
from cutlayer.party.agreement import Agreement
from cutlayer.party.run import make_loader
from cutlayer.plan.batches import Batch as Span
from cutlayer.plan.batches import micro_batches as spans_of
from cutlayer.plan.terms import Training
from cutlayer.studies import codecs, cuts
from cutlayer.studies.codecs import Passage
from cutlayer.studies.costs import Alone, Batch, Memory, Pair, Times, crossing_of
from cutlayer.studies.flops import Operations, per_row

TRIES = 5
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One cut with one codec and so many micro-batches; what crosses is of one micro-batch."""

    codec: str
    micro_batches: int
    times: Times
    up: Passage
    down: Passage


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A cut: what each side computes and holds, and what crosses. Bytes and operations are of one row, uncompressed."""

    layer: str
    crosses: str
    """The tensors, in words."""
    bytes_forward: int
    bytes_back: int
    client_flops: Operations | None
    server_flops: Operations | None
    client_memory: Memory
    server_memory: Memory
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """All of them, and what a client of federated averaging would compute: the whole model."""

    rows: int
    """Of a mini-batch."""
    data_rows: int
    label_bytes: int
    """Of one row."""
    load_s: Mapping[int, float]
    """Seconds to load one micro-batch, by how many there are of them."""
    places: tuple[Place, ...]
    whole_step_s: float
    whole_bytes: int
    """Of all parameters and buffers."""
    whole_flops: Operations | None
    whole_memory: Memory
    refused: tuple[str, ...] = ()
    """Codecs and micro-batches that were left out, and why: a sentence each."""


def survey(
    model: nn.Module,
    rows: Dataset[Any],
    training: Training,
    *,
    named: Mapping[str, Codec | None],
    micros: Sequence[int] = (1,),
    only: Sequence[str] = (),
    progress: Progress = lambda sentence: None,
) -> Survey:
    """Measured with the first mini-batch of `rows`, in this process, with as many threads as torch has here.

    Raises `CutError`, `DataError`, `PlanError`, and whatever the model raises.
    """
    inputs = cuts.inputs_of(model, rows)
    terms = cuts.vanilla(training, inputs)
    sample = tuple(torch.zeros(each.spec.for_rows(2).shape, dtype=getattr(torch, each.dtype)) for each in inputs)
    plans = cuts.possible(model, terms, sample, cuts.only_known(model, only))
    first = next(iter(plans.values()))
    loader = make_loader(first, cuts.CLIENT, rows, None, bytes(32))
    assert loader is not None
    batch = _batch(loader, training.batch_size)
    counts, refused = _counts(model, micros, len(batch.y))
    places = []
    for number, (layer, agreement) in enumerate(plans.items(), 1):
        progress(f"cut {number} of {len(plans)}: after {layer}")
        places.append(_place(layer, agreement, batch, counts, named, refused))
    progress("the whole model")
    whole = Alone(first, model, batch)
    return Survey(
        rows=len(batch.y),
        data_rows=loader.rows.train,
        label_bytes=batch.y.nbytes // len(batch.y),
        load_s={count: _load_s(loader, len(batch.y), count) for count in counts},
        places=tuple(places),
        whole_step_s=whole.step_s(),
        whole_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        whole_flops=per_row(model, (first.inputs,)),
        whole_memory=whole.memory(),
        refused=tuple(dict.fromkeys(refused)),
    )


def _batch(loader: Loader, batch_size: int) -> Batch:
    count = min(batch_size, loader.rows.train)
    if count < 2:
        raise DataError(f"the sample has {count} row(s): give two or more, better a whole mini-batch")
    span = Span(0, 0, count)
    return Batch(x=loader.load("x", span), y=loader.load("y", span)[0])


def _counts(model: nn.Module, micros: Sequence[int], rows: int) -> tuple[list[int], list[str]]:
    """How many micro-batches can be tried, and why not others."""
    counts, refused = sorted({count for count in micros if count <= rows}), []
    if len(counts) < len(set(micros)):
        refused.append(f"more micro-batches than the {rows} rows of a mini-batch were left out")
    if (layers := batch_norm_layers(model)) and counts != [1]:
        counts = [1]
        refused.append(f"micro-batches were left out: {', '.join(layers)} normalise(s) over the whole mini-batch")
    return counts or [1], refused


def _load_s(loader: Loader, rows: int, micro_batches: int) -> float:
    took = []
    for _ in range(TRIES):
        start = time.perf_counter()
        for begin, end in spans_of(rows, rows, 0, micro_batches):
            for source in ("x", "y"):
                loader.load(source, Span(0, begin, end))
        took.append((time.perf_counter() - start) / micro_batches)
    return statistics.median(took)


def _place(
    layer: str,
    agreement: Agreement,
    batch: Batch,
    counts: Sequence[int],
    named: Mapping[str, Codec | None],
    refused: list[str],
) -> Place:
    crossing = crossing_of(agreement)
    pair = Pair(agreement, batch)
    client_memory, server_memory = pair.memory()
    trials: list[Trial] = []
    for count in counts:
        times = pair.times(count)
        trials += _trials(pair, count, times, named, refused)
    inputs = {"bottom": agreement.inputs, "top": crossing}
    flops = {name: per_row(agreement.parts[name], (specs,)) for name, specs in inputs.items()}
    return Place(
        layer=layer,
        crosses=", ".join(map(str, crossing)),
        bytes_forward=sum(spec.for_rows(1).nbytes for spec in crossing),
        bytes_back=sum(spec.for_rows(1).nbytes for spec in crossing if spec.differentiable),
        client_flops=flops["bottom"],
        server_flops=flops["top"],
        client_memory=client_memory,
        server_memory=server_memory,
        trials=tuple(trials),
    )


def _trials(pair: Pair, count: int, times: Times, named: Mapping[str, Codec | None], refused: list[str]) -> list[Trial]:
    """One for each codec that can carry what crosses."""
    trials = []
    for name, codec in named.items():
        if reason := codecs.fault(codec, (*pair.sent, *pair.answered)):
            refused.append(f"{name} was left out: {reason}")
            continue
        up, down = _passage(codec, pair.sent), _passage(codec, pair.answered)
        trials.append(Trial(codec=name, micro_batches=count, times=times, up=up, down=down))
    return trials


def _passage(codec: Codec | None, tensors: Sequence[Tensor]) -> Passage:
    return codecs.passage(codec, [tensor.detach() for tensor in tensors])
