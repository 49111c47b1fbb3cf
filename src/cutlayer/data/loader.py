"""A party's rows in an agreed order: a batch is a function of the order key, the epoch and the rows alone."""

import hashlib
import hmac
import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cutlayer.data.columns import Columns
from cutlayer.data.encoding import Encoding
from cutlayer.data.rows import row_source
from cutlayer.data.tables import Table
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.tensors import TensorSpec
from cutlayer.protocol.messages import MARK_BYTES, Rows, Ticket

SOURCES = ("x", "y")
KEY_BYTES = 32
IDS_AT_ONCE = 4096
FAR_ROWS = 64
"""By how many rows parties may be out of step for the fault to be found."""
WHOLE_BYTES = 8
"""Of a mark: those that say which rows there are in all."""


class Loader:
    """Hands out batches of a map-style dataset of `(x, y)` samples; a Loader that exists has been checked.

    The rows of a `TensorDataset` are all checked here, and taken without per-sample Python; in natural order a batch
    is then a view of them: clone it before writing to it. Of any other dataset the first sample is checked here, and
    each batch as it is loaded.

    Parties that have columns of the same rows follow one order key (`follow`), which the first of them makes, and mark
    each batch with what it has of the rows' ids (`mark`): a dataset's `ids`, or else their places.
    """

    def __init__(  # noqa: PLR0913 (what a plan expects of rows, said one by one)
        self,
        dataset: Dataset[Any],
        *,
        inputs: Sequence[TensorSpec],
        labels: TensorSpec | None,
        secret: bytes,
        shuffle: bool = True,
        held_out: Dataset[Any] | float = 0.0,
        classes: int | None = None,
        task: str = "train",
        place: str = "",
        ignored: int | None = None,
    ) -> None:
        """Set rows aside, and check what there is.

        Args:
            dataset: samples `(x, y)`; x is a Tensor, an array or a number, or a tuple of them. Samples `x` or `y` where
                a party has only the one or the other.
            inputs: what the plan expects of x, batch dimension first; nothing of a party that has labels only.
            labels: what the plan expects of y; None of a party that has features only.
            secret: the key of the row order. Whoever knows it knows the order.
            shuffle: a new order each epoch; else the dataset's own. Held-out rows keep their own order always.
            held_out: rows to evaluate on: a dataset, or the fraction of `dataset` set aside once and for all.
            classes: how many classes there are, if the labels are class numbers.
            place: what the order key is for, the plan's digest: another plan has another order and other marks.
            ignored: a label that counts for none of the classes.
            task: with `"predict"` all rows are set aside, and labels are not asked for.

        Raises:
            DataError: the dataset has no rows or no length, its samples are no pairs, or a tensor is not what the
                plan expects: shape, dtype, finite values, label range.
        """
        self._shuffle, self._predicts = shuffle, task == "predict"
        self._secret = secret
        columns = Columns.of(
            inputs,
            None if self._predicts else labels,
            classes,
            "the dataset",
            spare_label=self._predicts,
            ignored=ignored,
        )
        self._tables = [dataset]
        self._dataset = self._held_out = row_source(dataset, columns, secret)
        self._fraction = 0.0 if self._predicts or isinstance(held_out, Dataset) else held_out
        if isinstance(held_out, Dataset):
            self._tables.append(held_out)
            self._held_out = row_source(
                held_out, Columns.of(inputs, labels, classes, "the held-out dataset", ignored=ignored), secret
            )
        for table, rows in zip(self._tables, (self._dataset, self._held_out), strict=False):
            Ids(table).check(len(rows))
        self._chosen: Tensor | None = None
        self._aside = torch.empty(0, dtype=torch.int64)
        self._fitted = False
        about = hashlib.sha256(b"order of rows" + place.encode()).digest()
        self._own_key = hashlib.blake2b(about, key=secret[:64], digest_size=KEY_BYTES).digest()
        self._set_aside(secret)

    @property
    def encoding(self) -> Encoding | None:
        """What a table has learned of its training rows, once it has; None for rows that are numbers already."""
        table = self._tables[0]
        return table.encoding if isinstance(table, Table) and self._fitted and table.has_features else None

    @property
    def ids(self) -> Sequence[Any] | None:
        """The ids of the rows, in the dataset's own order, if it has any."""
        return getattr(self._tables[0], "ids", None)

    # ------------------------------------------------------------------ the order

    @property
    def order_key(self) -> bytes:
        """A key of the order of rows, which this party may tell others that have columns of the same rows."""
        return self._own_key

    def follow(self, key: bytes) -> None:
        """Take the rows in the order of this key from now on. Raises `DataError` for what is none."""
        if len(key) != KEY_BYTES:
            raise DataError(f"the key of the order of rows has {len(key)} bytes, not {KEY_BYTES}: all must run alike")
        self._set_aside(key)

    def _set_aside(self, key: bytes) -> None:
        self._key = key
        self._order: tuple[int, Tensor | None] = (-1, None)
        self._whole: dict[bool, bytes] = {}
        if self._predicts:
            self._chosen, self._aside = torch.empty(0, dtype=torch.int64), torch.arange(len(self._dataset))
        elif len(self._tables) > 1:
            self._aside = torch.arange(len(self._held_out))
        elif self._fraction:
            self._chosen, self._aside = _split(len(self._dataset), self._fraction, key)
        train = len(self._dataset) if self._chosen is None else len(self._chosen)
        self.rows = Rows(train=train, held_out=len(self._aside))

    # ------------------------------------------------------------------ batches

    def load(self, source: str, batch: Batch) -> tuple[Tensor, ...]:
        """The tensors of `source`: the inputs for `x`, the labels alone for `y`; each `[batch.rows, ...]`.

        Raises: DataError for a source or rows that this party does not have, or rows that fail their checks.
        """
        if source not in SOURCES:
            raise DataError(f"this party has no source {source!r}: its rows offer x and y.")
        self._fit()
        rows = self._places(batch)
        return (self._held_out if batch.held_out else self._dataset).take(source, batch, rows)

    def mark(self, ticket: Ticket, batch: Batch) -> bytes:
        """What says which rows a ticket means, to those who have the order key and to nobody else `[MARK_BYTES]`.

        The first bytes stand for all rows that there are, so that parties whose tables differ anywhere find out at
        their first ticket; the others for the batch's.
        """
        ids = Ids(self._tables[-1] if batch.held_out else self._tables[0])
        if batch.held_out not in self._whole:
            there = range(len(self._held_out if batch.held_out else self._dataset))
            self._whole[batch.held_out] = self._hmac(b"all", ids.at(there))[:WHOLE_BYTES]
        return self._whole[batch.held_out] + self._of_batch(ticket, ids.at(self._rows_at(batch)))

    def out_of_step(self, mark: bytes, ticket: Ticket, batch: Batch) -> tuple[int, int] | None:
        """The same row's place at whoever made this mark, and here; None if no small shift explains the mark."""
        rows, there = self._rows_at(batch), len(self._held_out if batch.held_out else self._dataset)
        ids = Ids(self._tables[-1] if batch.held_out else self._tables[0])
        for shift in sorted(range(-FAR_ROWS, FAR_ROWS + 1), key=abs):
            shifted = [(place + shift) % there for place in rows]
            if self._of_batch(ticket, ids.at(shifted)) == mark[WHOLE_BYTES:]:
                return (rows[0], shifted[0]) if shift else None
        return None

    def places(self, batch: Batch) -> Tensor:
        """Where a batch's rows lie in their dataset, as int64 `[batch.rows]`. Raises `DataError`."""
        rows = self._places(batch)
        return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows

    def _rows_at(self, batch: Batch) -> Sequence[int]:
        rows = self._places(batch)
        return range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()

    def _of_batch(self, ticket: Ticket, ids: Iterable[bytes]) -> bytes:
        return self._hmac(repr(ticket).encode(), ids)[: MARK_BYTES - WHOLE_BYTES]

    def _hmac(self, about: bytes, ids: Iterable[bytes]) -> bytes:
        mac = hmac.new(self._key, b"cutlayer rows 1" + hashlib.sha256(about).digest(), "sha256")
        left = iter(ids)
        while some := b"".join(islice(left, IDS_AT_ONCE)):
            mac.update(some)
        return mac.digest()

    def _places(self, batch: Batch) -> slice | Tensor:
        """Where a batch's rows lie in their dataset. Raises: DataError."""
        there = self.rows.held_out if batch.held_out else self.rows.train
        if not 0 <= batch.start < batch.stop <= there:
            raise DataError(
                f"rows {batch.start} to {batch.stop} were asked for, but there are {there}"
                f"{' held-out' * batch.held_out} rows: start the run anew, so that all parties learn the row counts."
            )
        part = slice(batch.start, batch.stop)
        if batch.held_out:
            return self._aside[part]
        order = self._order_of(batch.epoch)
        return part if order is None else order[part]

    def _fit(self) -> None:
        """Before the first batch: a table learns its scales and categories, from the rows that are trained on."""
        if self._fitted:
            return
        self._fitted = True
        table = self._tables[0]
        if not isinstance(table, Table):
            return
        table.fit(torch.arange(len(self._dataset)) if self._chosen is None else self._chosen)
        for other in self._tables[1:]:
            if isinstance(other, Table):
                other.encode_with(table.encoding)

    def _order_of(self, epoch: int) -> Tensor | None:
        """Where the training rows of an epoch lie in the dataset `[rows]`; None for first to last."""
        if not self._shuffle:
            return self._chosen
        if self._order[0] != epoch:
            order = _permutation(self.rows.train, stream_seed(self._key, "order", epoch))
            self._order = (epoch, order if self._chosen is None else self._chosen[order])
        return self._order[1]


class Ids:
    """The ids of a dataset's rows as bytes that are equal only for equal ids of the same type."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._ids = getattr(dataset, "ids", None)

    def check(self, rows: int) -> None:
        """Raises `DataError` for ids that are too few or too many, or no whole numbers or texts."""
        if self._ids is None:
            return
        if len(self._ids) != rows:
            raise DataError(f"there are {len(self._ids)} ids for {rows} rows: give each row its id.")
        for value in self._ids:
            try:
                whole = value is None or isinstance(value, str) or operator.index(value) == value
            except TypeError:
                whole = False
            if not whole or isinstance(value, bool | np.bool_):
                raise DataError(f"an id is of type {type(value).__name__}: ids are whole numbers or texts.")

    def at(self, places: Sequence[int]) -> Iterator[bytes]:
        """Of the rows at these places, in this order: a type and a length before each. Without ids, their places."""
        if self._ids is None:
            return (b"#" + place.to_bytes(8, "big") for place in places)
        whole = isinstance(places, range) and places == range(len(self._ids))
        return map(_id_bytes, self._ids if whole else (self._ids[place] for place in places))


def _id_bytes(value: Any) -> bytes:
    if value is None:
        return b"-"
    text = isinstance(value, str)
    told = (value if text else str(int(value))).encode()
    return (b"s" if text else b"i") + len(told).to_bytes(4, "big") + told


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
