"""A Parquet file, with the same doors as `cells.CsvFile`. It is mapped, and decoded a batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from cutlayer.errors import DataError


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A Parquet file; `str()` names it in sentences."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def header(self) -> list[str]:
        """The column names. Raises: DataError if there is no file, or it is none."""
        with self._opened() as file:
            return list(file.schema_arrow.names)

    def types(self) -> dict[str, pa.DataType]:
        """What each column holds."""
        with self._opened() as file:
            return {field.name: field.type for field in file.schema_arrow}

    def count(self, names: Sequence[str]) -> int:
        """How many rows there are."""
        with self._opened() as file:
            return int(file.metadata.num_rows)

    def batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The columns, and perhaps others whose names begin like theirs, at most so many rows at a time."""
        with self._opened() as file:
            yield from file.iter_batches(batch_size=rows, columns=list(names), use_threads=False)

    def row_of(self, sample: int) -> int:
        """The row of a sample, counted from 1."""
        return sample + 1

    def rowless(self) -> DataError:
        """There are columns, and nothing in them."""
        return DataError(f"{self} has columns but no rows: add one row for each sample.")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with parquet.ParquetFile(self.path, memory_map=True) as file:
                yield file
        except FileNotFoundError as error:
            raise DataError(f"there is no file {self}: correct the path, which is taken from {Path.cwd()}.") from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise DataError(f"{self} is not a Parquet file that can be read ({error}): write it anew.") from error
