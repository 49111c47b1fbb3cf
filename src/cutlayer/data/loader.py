"""A party's rows in an agreed order: a batch is a function of the order key, the epoch and the rows alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cutlayer.data.columns import Columns
from cutlayer.data.rows import row_source
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.tensors import TensorSpec
from cutlayer.protocol.messages import Rows

SOURCES = ("x", "y")


class Loader:
    """Hands out batches of a map-style dataset of `(x, y)` samples; a Loader that exists has been checked.

    The rows of a `TensorDataset` are all checked here, and taken without per-sample Python; in natural order a batch
    is then a view of them: clone it before writing to it. Of any other dataset the first sample is checked here, and
    each batch as it is loaded.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        inputs: Sequence[TensorSpec],
        labels: TensorSpec,
        secret: bytes,
        shuffle: bool = True,
        held_out: Dataset[Any] | float = 0.0,
        classes: int | None = None,
    ) -> None:
        """Set rows aside, and check what there is.

        Args:
            dataset: samples `(x, y)`; x is a Tensor, an array or a number, or a tuple of them.
            inputs: what the plan expects of x, batch dimension first.
            labels: what the plan expects of y.
            secret: the key of the row order. Whoever knows it knows the order.
            shuffle: a new order each epoch; else the dataset's own. Held-out rows keep their own order always.
            held_out: rows to evaluate on: a dataset, or the fraction of `dataset` set aside once and for all.
            classes: how many classes there are, if the labels are class numbers.

        Raises:
            DataError: the dataset has no rows or no length, its samples are no pairs, or a tensor is not what the
                plan expects: shape, dtype, finite values, label range.
        """
        self._secret, self._shuffle = secret, shuffle
        self._dataset = row_source(dataset, Columns.of(inputs, labels, classes, "the dataset"), secret)
        self._chosen: Tensor | None = None
        self._held_out, self._aside = self._dataset, torch.empty(0, dtype=torch.int64)
        if isinstance(held_out, Dataset):
            self._held_out = row_source(held_out, Columns.of(inputs, labels, classes, "the held-out dataset"), secret)
            self._aside = torch.arange(len(self._held_out))
        elif held_out:
            self._chosen, self._aside = _split(len(self._dataset), held_out, secret)
        train = len(self._dataset) if self._chosen is None else len(self._chosen)
        self.rows = Rows(train=train, held_out=len(self._aside))
        self._order: tuple[int, Tensor | None] = (-1, None)

    def load(self, source: str, batch: Batch) -> tuple[Tensor, ...]:
        """The tensors of `source`: the inputs for `x`, the labels alone for `y`; each `[batch.rows, ...]`.

        Raises: DataError for a source or rows that this party does not have, or rows that fail their checks.
        """
        if source not in SOURCES:
            raise DataError(f"this party has no source {source!r}: its rows offer x and y.")
        there = self.rows.held_out if batch.held_out else self.rows.train
        if not 0 <= batch.start < batch.stop <= there:
            raise DataError(
                f"rows {batch.start} to {batch.stop} were asked for, but there are {there}"
                f"{' held-out' * batch.held_out} rows: start the run anew, so that all parties learn the row counts."
            )
        part = slice(batch.start, batch.stop)
        if batch.held_out:
            return self._held_out.take(source, batch, self._aside[part])
        order = self._order_of(batch.epoch)
        return self._dataset.take(source, batch, part if order is None else order[part])

    def _order_of(self, epoch: int) -> Tensor | None:
        """Where the training rows of an epoch lie in the dataset `[rows]`; None for first to last."""
        if not self._shuffle:
            return self._chosen
        if self._order[0] != epoch:
            order = _permutation(self.rows.train, stream_seed(self._secret, "order", epoch))
            self._order = (epoch, order if self._chosen is None else self._chosen[order])
        return self._order[1]


def _split(rows: int, fraction: float, secret: bytes) -> tuple[Tensor, Tensor]:
    """Places of the rows to train on and of those held out, each in natural order, at least one of both."""
    if not 0 <= fraction < 1:
        raise DataError(f"{fraction} of the rows cannot be held out: give a fraction from 0 to below 1, such as 0.2.")
    if rows < 2:
        raise DataError("one row cannot be both trained on and held out: give more rows, or hold out none.")
    count = min(max(round(rows * fraction), 1), rows - 1)
    order = _permutation(rows, stream_seed(secret, "held-out"))
    return order[count:].sort().values, order[:count].sort().values


def _permutation(rows: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
