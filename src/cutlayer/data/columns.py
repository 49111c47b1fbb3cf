"""What a plan expects of a party's rows, column by column, and whether the rows keep to it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cutlayer.errors import DataError
from cutlayer.plan.tensors import TensorSpec

Parts = dict[str, tuple[Tensor, ...]]
"""The tensors of one batch by source, `x` and `y`; rows first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One tensor of the rows: its name in sentences, the rows it belongs to, and what the plan says of it.

    `is_label` also lets sizes of 1 differ, `(B,)` for `(B, 1)` say; `classes` bounds class labels.
    """

    name: str
    dataset: str
    spec: TensorSpec
    is_label: bool = False
    classes: int | None = None
    ignored: int | None = None
    """A label that counts for none of the classes."""

    @property
    def dtype(self) -> torch.dtype:
        found = getattr(torch, self.spec.dtype)
        assert isinstance(found, torch.dtype)
        return found

    def check(self, values: object, rows: Sequence[int]) -> Tensor:
        """`values` as the plan wants them, after every check; `rows` are their places in the dataset.

        Raises: DataError on another shape or dtype, NaN or infinite values, and labels out of range.
        """
        if not isinstance(values, Tensor):
            values = values[0] if isinstance(values, tuple | list) else values
            raise DataError(
                f"{self.name} of {self._row(rows[0])} is {_article(values)}, which no tensor can be made of: "
                "return a Tensor, an array or a number."
            )
        self._check_shape(values, len(rows))
        self._check_finite(values, rows)
        fitted = self.fit(values)
        self._check_conversion(values, fitted, rows)
        self._check_classes(fitted, rows)
        return fitted

    def fit(self, values: Tensor) -> Tensor:
        """Checked `values` in the spec's dtype and shape, without looking at them again."""
        if values.dtype is not self.dtype:
            values = values.to(self.dtype)
        if self.is_label and values.shape[1:] != self.spec.shape[1:]:
            values = values.reshape(self.spec.for_rows(len(values)).shape)
        return values

    def _check_shape(self, values: Tensor, rows: int) -> None:
        wanted, found = self.spec.for_rows(rows).shape, tuple(values.shape)
        if self.is_label:
            wanted, found = _without_ones(wanted), _without_ones(found)
        if found != wanted or _kind(values.dtype) > _kind(self.dtype):
            sizes = ", ".join(["B", *map(str, values.shape[1:])])
            raise DataError(
                f"{self.name} of {self.dataset} is {_name(values.dtype)}[{sizes}], the plan expects {self.spec} "
                f"(B: rows of a batch): change the rows, or the {'loss' if self.is_label else 'model'} in the plan."
            )

    def _check_finite(self, values: Tensor, rows: Sequence[int]) -> None:
        if not values.dtype.is_floating_point or bool(values.isfinite().all()):
            return
        at = _first_row(~values.isfinite())
        bad = values[at][~values[at].isfinite()].flatten()[0].item()
        raise DataError(
            f"{self.name} of {self._row(rows[at])} holds {bad}, which would spoil every weight it reaches: "
            "fill in or leave out such rows."
        )

    def _check_classes(self, values: Tensor, rows: Sequence[int]) -> None:
        if self.classes is None or not values.numel():
            return
        if self.ignored is not None:
            values = values.where(values != self.ignored, 0)
        low, high = values.min().item(), values.max().item()
        if low >= 0 and high < self.classes:
            return
        at = _first_row((values < 0) | (values >= self.classes))
        raise DataError(
            f"the labels of {self.dataset} run from {low} to {high}, but the plan has {self.classes} classes, "
            f"0 to {self.classes - 1}; the first that does not fit is in {self._row(rows[at])}: "
            "number the classes from 0, or give the model more outputs."
        )

    def _check_conversion(self, values: Tensor, fitted: Tensor, rows: Sequence[int]) -> None:
        """Every value must survive the spec's dtype, save for the rounding of float64 to float32."""
        if values.dtype is fitted.dtype:
            return
        if (values.dtype, fitted.dtype) == (torch.float64, torch.float32):
            bad = ~fitted.isfinite()
        else:
            bad = fitted.to(values.dtype) != values.reshape(fitted.shape)
        if bool(bad.any()):
            raise DataError(
                f"{self.name} of {self._row(rows[_first_row(bad)])} is {_name(values.dtype)} and would lose its value "
                f"as {self.spec.dtype}, which the plan expects: convert the rows, or change the plan's dtype."
            )

    def _row(self, row: int) -> str:
        return f"row {row} of {self.dataset} (counted from 0)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The input columns and the label column of one dataset; a party may have only the ones, or only the other."""

    inputs: tuple[Column, ...]
    label: Column | None
    dataset: str
    spare_label: bool = False
    """Samples may have a label that nobody asks for."""

    @classmethod
    def of(
        cls,
        inputs: Sequence[TensorSpec],
        labels: TensorSpec | None,
        classes: int | None,
        dataset: str,
        *,
        spare_label: bool = False,
        ignored: int | None = None,
    ) -> "Columns":
        """The columns that the plan's specs ask of `dataset`, a name for sentences."""
        names = ["x"] if len(inputs) == 1 else [f"x[{place}]" for place in range(len(inputs))]
        return cls(
            inputs=tuple(
                Column(name=name, dataset=dataset, spec=spec) for name, spec in zip(names, inputs, strict=True)
            ),
            label=None
            if labels is None
            else Column(name="y", dataset=dataset, spec=labels, is_label=True, classes=classes, ignored=ignored),
            dataset=dataset,
            spare_label=spare_label,
        )

    @property
    def by_source(self) -> dict[str, tuple[Column, ...]]:
        """Those of `x` and of `y`."""
        return {"x": self.inputs, "y": () if self.label is None else (self.label,)}

    def check(self, parts: Mapping[str, Sequence[object]], rows: Sequence[int]) -> Parts:
        """The inputs and the labels of a batch, checked. Raises: DataError."""
        return {
            source: tuple(column.check(values, rows) for column, values in zip(columns, parts[source], strict=True))
            for source, columns in self.by_source.items()
        }

    def split(self, sample: object) -> dict[str, Sequence[Any]]:
        """The inputs and the label of `(x, y)`, `((x_0, x_1), y)` or `(x_0, x_1, y)`; or of one of them alone.

        Raises: DataError.
        """
        if self.label is None:
            return {"x": self._inputs_of(self._without_label(sample)), "y": ()}
        if not self.inputs:
            return {"x": (), "y": (self._only_label(sample),)}
        if not isinstance(sample, tuple | list) or len(sample) not in {2, len(self.inputs) + 1}:
            raise DataError(
                f"a sample of {self.dataset} is {_article(sample)}, not a pair (x, y): "
                "let the dataset return the features and the label, in this order."
            )
        *x, y = sample
        return {"x": self._inputs_of(x[0] if len(x) == 1 and isinstance(x[0], tuple | list) else x), "y": (y,)}

    def _without_label(self, sample: object) -> object:
        if self.spare_label and isinstance(sample, tuple | list) and len(sample) == len(self.inputs) + 1:
            return sample[:-1]
        if self.spare_label and isinstance(sample, tuple | list) and len(sample) == 2:
            return sample[0] if isinstance(sample[0], tuple | list) else sample
        return sample

    def _only_label(self, sample: object) -> object:
        if not isinstance(sample, tuple | list):
            return sample
        if len(sample) != 1:
            raise DataError(
                f"a sample of {self.dataset} is {_article(sample)}, but the plan wants labels alone of this party: "
                "let the dataset return the label."
            )
        return sample[0]

    def _inputs_of(self, x: object) -> Sequence[Any]:
        given = x if isinstance(x, tuple | list) else (x,)
        if len(given) == 1 and isinstance(given[0], tuple | list):
            given = given[0]
        if len(given) != len(self.inputs):
            raise DataError(
                f"the inputs in a sample of {self.dataset} number {len(given)}, the plan expects {len(self.inputs)}"
                + (", and no label of this party" if self.label is None else "")
                + ": let the dataset return a tuple of inputs that the model takes in this order, then the label "
                "if the plan wants one."
            )
        return given


def _first_row(bad: Tensor) -> int:
    """The first row of a mask `[rows, ...]` with a true value."""
    return int(bad.reshape(len(bad), math.prod(bad.shape[1:])).any(dim=1).nonzero()[0])


def _without_ones(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return sizes[:1] + tuple(size for size in sizes[1:] if size != 1)


def _kind(dtype: torch.dtype) -> int:
    """bool, integer, float, complex: values go up this ladder, never down."""
    if dtype is torch.bool:
        return 0
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _article(value: object) -> str:
    kind = type(value).__name__
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}{size}"
