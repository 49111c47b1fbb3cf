"""Where a batch's rows come from: whole tensors, or samples fetched one by one and put together."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from cutlayer.data.columns import Columns, Parts
from cutlayer.data.tables import Table
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch
from cutlayer.plan.streams import stream_seed

_CHUNK_VALUES = 2**22
"""Whole tensors are checked in parts of about this many values, so that a check needs little memory."""
_ALIGNMENT_BYTES = 64


class RowSource(Protocol):
    """Rows by their place in a dataset."""

    def __len__(self) -> int: ...

    def take(self, source: str, batch: Batch, rows: slice | Tensor) -> tuple[Tensor, ...]:
        """The tensors of `source`, `x` or `y`, at `rows`, which `batch` named."""


def row_source(dataset: Dataset[Any], columns: Columns, secret: bytes) -> RowSource:
    """The rows of `dataset`, checked as far as they can be without reading every sample. Raises: DataError."""
    if isinstance(dataset, Table):
        return TableRows(dataset, columns)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{columns.dataset} is a {type(dataset).__name__} without len() or rows by number: "
            "give a map-style dataset, one with __len__ and __getitem__."
        )
    if type(dataset) is TensorDataset:
        return WholeTensors(dataset.tensors, columns)
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        return WholeTensors(dataset.dataset.tensors, columns, _places(dataset, columns))
    return Samples(dataset, columns, secret)


class WholeTensors:
    """Rows held as whole tensors, or those at `places` of them: a batch of successive rows is a view."""

    def __init__(self, tensors: Sequence[Tensor], columns: Columns, places: Tensor | None = None) -> None:
        self._places = places
        self._rows = _at_least_one(len(tensors[0]) if places is None else len(places), columns)
        split = columns.split(tuple(tensors))
        self._parts: Parts = {source: tuple(map(_settled, values)) for source, values in split.items()}
        self._columns = columns.by_source
        self._converts = {source: self._check(source) for source in self._parts}

    def __len__(self) -> int:
        return self._rows

    def take(self, source: str, batch: Batch, rows: slice | Tensor) -> tuple[Tensor, ...]:
        if self._places is not None:
            rows = self._places[rows]
        taken = tuple(_taken(tensor, rows) for tensor in self._parts[source])
        if not self._converts[source]:
            return taken
        return tuple(column.fit(values) for column, values in zip(self._columns[source], taken, strict=True))

    def _check(self, source: str) -> bool:
        """Check every row of `source`; whether its batches differ from the plan in dtype or shape."""
        differs = False
        for column, tensor in zip(self._columns[source], self._parts[source], strict=True):
            step = max(1, _CHUNK_VALUES * len(tensor) // max(1, tensor.numel()))
            for start in range(0, self._rows, step):
                rows = slice(start, min(start + step, self._rows))
                part = _taken(tensor, rows if self._places is None else self._places[rows])
                fitted = column.check(part, range(rows.start, rows.stop))
                differs |= fitted.dtype is not part.dtype or fitted.shape != part.shape
        return differs


class TableRows:
    """Rows of a table, encoded as its training rows say; each batch is checked as it comes."""

    def __init__(self, table: Table, columns: Columns) -> None:
        self._table, self._columns = table, columns
        self._kept: tuple[Batch, Parts] | None = None
        found = [f"{dtype}[B, {', '.join(map(str, shape))}]" for dtype, shape in table.specs]
        shapes = [shape for _, shape in table.specs]
        if shapes != [column.spec.shape[1:] for column in columns.inputs]:
            wanted = ", ".join(str(column.spec) for column in columns.inputs) or "none"
            raise DataError(
                f"the columns of {columns.dataset} make {', '.join(found) or 'no features'}, the plan expects "
                f"{wanted}: mend their roles in the party's own file, or the plan's input."
            )
        if columns.label is not None and not table.has_label:
            raise DataError(f"the plan wants labels of {columns.dataset}: name their column as label.")

    def __len__(self) -> int:
        return len(self._table)

    def take(self, source: str, batch: Batch, rows: slice | Tensor) -> tuple[Tensor, ...]:
        if self._kept is None or self._kept[0] != batch or source not in self._kept[1]:
            x, y = self._table.batch(rows)
            places = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
            labels = (y,) if self._columns.label is not None else ()
            self._kept = batch, self._columns.check({"x": x, "y": labels}, places)
        return self._kept[1].pop(source)


class Samples:
    """Rows fetched as samples and put together by torch's collation; each batch is checked as it comes.

    Random transforms of the samples draw from streams of the party's secret and of the batch.
    """

    def __init__(self, dataset: Any, columns: Columns, secret: bytes) -> None:
        self._dataset, self._columns, self._secret = dataset, columns, secret
        self._rows = _at_least_one(len(dataset), columns)
        self._kept: tuple[Batch, Parts] | None = None
        with _seeded(stream_seed(secret, "samples", "check")):
            self._checked([0])

    def __len__(self) -> int:
        return self._rows

    def take(self, source: str, batch: Batch, rows: slice | Tensor) -> tuple[Tensor, ...]:
        """The other source is kept until it is asked for; what was handed out is not, as others may write to it."""
        if self._kept is None or self._kept[0] != batch or source not in self._kept[1]:
            self._kept = (batch, self._fetched(batch, rows))
        return self._kept[1].pop(source)

    def _fetched(self, batch: Batch, rows: slice | Tensor) -> Parts:
        places = list(range(rows.start, rows.stop)) if isinstance(rows, slice) else rows.tolist()
        seed = stream_seed(self._secret, "samples", batch.epoch, batch.start, batch.stop, batch.held_out)
        with _seeded(seed):
            return self._checked(places)

    def _checked(self, places: list[int]) -> Parts:
        split = [self._columns.split(sample) for sample in self._read(places)]
        try:
            parts = {
                source: [
                    default_collate(list(values)) for values in zip(*(each[source] for each in split), strict=True)
                ]
                for source in split[0]
            }
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"rows {min(places)} to {max(places)} of {self._columns.dataset} cannot be put together ({error}): "
                "let every sample return features and a label of the same shapes, as Tensors, arrays or numbers."
            ) from error
        return self._columns.check(parts, places)

    def _read(self, places: list[int]) -> list[Any]:
        at = f"one of rows {min(places)} to {max(places)}"
        samples: list[Any] = []
        try:
            if hasattr(self._dataset, "__getitems__"):
                samples += self._dataset.__getitems__(places)
            else:
                for place in places:
                    at = f"row {place}"
                    samples.append(self._dataset[place])
        except Exception as error:
            raise DataError(
                f"{at} of {self._columns.dataset} (counted from 0) could not be read "
                f"({type(error).__name__}: {error}): mend or leave out the row."
            ) from error
        if len(samples) != len(places):
            raise DataError(
                f"{self._columns.dataset} returned {len(samples)} samples for {len(places)} rows: mend __getitems__."
            )
        return samples


def _taken(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _places(subset: Subset[Any], columns: Columns) -> Tensor:
    """Where the rows of a subset lie in its tensors `[rows]`."""
    indices = torch.as_tensor(list(subset.indices), dtype=torch.int64)
    there = len(subset.dataset)  # type: ignore[arg-type]
    if bool(((indices < -there) | (indices >= there)).any()):
        raise DataError(f"{columns.dataset} is a Subset with indices outside its {there} rows: mend the indices.")
    return indices % max(1, there)


def _at_least_one(rows: int, columns: Columns) -> int:
    if not rows:
        raise DataError(f"{columns.dataset} has no rows: give at least one, or leave this dataset out.")
    return rows


def _settled(tensor: Tensor) -> Tensor:
    """Without a graph, and aligned: a batch's bits must not depend on where some other library put its memory."""
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT_BYTES == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators (torch on the CPU, numpy, Python) set to `seed`, and set back afterwards."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
