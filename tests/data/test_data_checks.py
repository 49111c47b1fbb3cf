"""Claims about rows that cannot be used: one sentence says what is wrong, where, and the mend, before training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from cutlayer.data import Loader, rows
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch
from cutlayer.plan.tensors import TensorSpec

X = TensorSpec(dtype="float32", shape=("B", 3))
Y = TensorSpec(dtype="int64", shape=("B",))


class Lazy(Dataset[Any]):
    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


def refusal(dataset: Any, **terms: Any) -> str:
    """The sentence with which a Loader refuses `dataset`."""
    defaults: dict[str, Any] = {"inputs": (X,), "labels": Y, "secret": b"secret"}
    with pytest.raises(DataError) as caught:
        Loader(dataset, **(defaults | terms))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert ": " in sentence, "what is wrong, then the mend"
    return sentence


def pair(x: Tensor, y: Tensor | None = None) -> TensorDataset:
    return TensorDataset(x, torch.zeros(len(x), dtype=torch.int64) if y is None else y)


@pytest.mark.parametrize("empty", [pair(torch.zeros(0, 3)), Lazy([]), Subset(pair(torch.zeros(2, 3)), [])])
def test_a_dataset_without_rows(empty: Dataset[Any]) -> None:
    assert "the dataset has no rows" in refusal(empty)
    assert "the held-out dataset has no rows" in refusal(pair(torch.zeros(2, 3)), held_out=empty)


def test_an_iterable_dataset() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield torch.zeros(3), 0

    sentence = refusal(Stream())
    assert "the dataset is a Stream without len()" in sentence
    assert "give a map-style dataset" in sentence


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        (torch.zeros(3), "a Tensor"),
        ({"x": torch.zeros(3), "y": 0}, "a dict"),
        ((torch.zeros(3),), "a tuple of 1"),
        ((torch.zeros(3), 0, "name", 4), "a tuple of 4"),
    ],
)
def test_a_sample_that_is_no_pair(sample: Any, found: str) -> None:
    sentence = refusal(Lazy([sample, sample]))
    assert f"a sample of the dataset is {found}, not a pair (x, y)" in sentence
    assert "let the dataset return the features and the label" in sentence


def test_a_later_sample_that_is_no_pair() -> None:
    mine = Loader(Lazy([(torch.zeros(3), 0), 5]), inputs=(X,), labels=Y, secret=b"secret", shuffle=False)
    with pytest.raises(DataError, match="is an int, not a pair"):
        mine.load("x", Batch(0, 0, 2))


def test_a_tensor_dataset_that_is_no_pair() -> None:
    assert "is a tuple of 1, not a pair" in refusal(TensorDataset(torch.zeros(2, 3)))


def test_another_number_of_inputs_than_the_plans() -> None:
    assert "number 1, the plan expects 2" in refusal(Lazy([(torch.zeros(3), 0)]), inputs=(X, X))
    assert "number 2, the plan expects 1" in refusal(Lazy([((torch.zeros(3), torch.zeros(3)), 0)]))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.zeros(4, 5), "float32[B, 5]"),
        (torch.zeros(4, 3, 1), "float32[B, 3, 1]"),
        (torch.zeros(4), "float32[B]"),
        (torch.zeros(4, 3, dtype=torch.complex64), "complex64[B, 3]"),
    ],
)
def test_features_of_another_shape_or_kind_say_both(lazy: bool, x: Tensor, found: str) -> None:
    sentence = refusal(Lazy(pair(x)) if lazy else pair(x))
    assert f"x of the dataset is {found}, the plan expects float32[B, 3]" in sentence
    assert "change the rows, or the model in the plan" in sentence


@pytest.mark.parametrize("lazy", [False, True])
def test_labels_of_another_shape_or_kind_say_both(lazy: bool) -> None:
    for y, found in ((torch.zeros(4), "float32[B]"), (torch.zeros(4, 2, dtype=torch.int64), "int64[B, 2]")):
        dataset = pair(torch.zeros(4, 3), y)
        sentence = refusal(Lazy(dataset) if lazy else dataset)
        assert f"y of the dataset is {found}, the plan expects int64[B]" in sentence
        assert "change the rows, or the loss in the plan" in sentence


def test_the_input_at_fault_is_named_among_several() -> None:
    dataset = TensorDataset(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    assert "x[1] of the dataset is float32[B, 4]" in refusal(dataset, inputs=(X, X))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_name_the_first_row(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(100, 3)
    x[[71, 90], 1] = bad
    for chunk in (rows._CHUNK_VALUES, 30):
        monkeypatch.setattr(rows, "_CHUNK_VALUES", chunk)
        sentence = refusal(pair(x))
        assert f"x of row 71 of the dataset (counted from 0) holds {bad}" in sentence
        assert "fill in or leave out such rows" in sentence
    assert "row 70 of the dataset" in refusal(Subset(pair(x), range(1, 100))), "a subset's own rows are counted"


def test_features_of_a_lazy_dataset_are_checked_first_and_then_batch_by_batch() -> None:
    samples = [(torch.zeros(3), 0) for _ in range(10)]
    samples[7] = (torch.tensor([0, float("nan"), 0]), 0)
    assert "x of row 0 of the dataset" in refusal(Lazy(samples[7:]))
    mine = Loader(Lazy(samples), inputs=(X,), labels=Y, secret=b"secret", shuffle=False)
    mine.load("x", Batch(0, 0, 5))
    with pytest.raises(DataError, match=r"x of row 7 of the dataset \(counted from 0\) holds nan"):
        mine.load("y", Batch(0, 5, 10))


def test_labels_of_a_regression_must_be_finite_too() -> None:
    labels = TensorSpec(dtype="float32", shape=("B",))
    sentence = refusal(pair(torch.zeros(3, 3), torch.tensor([0.5, 1.0, float("nan")])), labels=labels)
    assert "y of row 2 of the dataset (counted from 0) holds nan" in sentence


@pytest.mark.parametrize(
    ("labels", "span", "row"), [([0, 1, 3, 5], "0 to 5", 2), ([0, 1, 3, 2], "0 to 3", 2), ([2, 0, -1, 1], "-1 to 2", 2)]
)
def test_labels_out_of_range_name_the_range_the_classes_and_the_first_row(
    labels: list[int], span: str, row: int
) -> None:
    dataset = pair(torch.zeros(4, 3), torch.tensor(labels))
    sentence = refusal(dataset, classes=3)
    assert f"the labels of the dataset run from {span}, but the plan has 3 classes, 0 to 2" in sentence
    assert f"row {row} of the dataset" in sentence
    assert "number the classes from 0, or give the model more outputs" in sentence
    assert "the held-out dataset run from" in refusal(pair(torch.zeros(4, 3)), held_out=dataset, classes=3)
    mine = Loader(Lazy(dataset), inputs=(X,), labels=Y, secret=b"secret", shuffle=False, classes=3)
    with pytest.raises(DataError, match=f"run from {span}.* row {row} of"):
        mine.load("x", Batch(0, 0, 4))


def test_labels_that_are_no_class_numbers_have_no_range() -> None:
    Loader(pair(torch.zeros(2, 3), torch.tensor([-100, 7])), inputs=(X,), labels=Y, secret=b"secret")


@pytest.mark.parametrize(
    ("x", "spec", "found"),
    [
        (torch.tensor([[0], [2**24 + 1]]), "float32", "int64"),
        (torch.tensor([[0], [300]]), "uint8", "int64"),
        (torch.tensor([[0.0], [0.1]]), "float16", "float32"),
        (torch.tensor([[0.0], [1e300]], dtype=torch.float64), "float32", "float64"),
    ],
)
def test_a_conversion_that_would_lose_a_value_is_refused(x: Tensor, spec: Any, found: str) -> None:
    sentence = refusal(pair(x), inputs=(TensorSpec(dtype=spec, shape=("B", 1)),))
    assert f"x of row 1 of the dataset (counted from 0) is {found} and would lose its value as {spec}" in sentence


@pytest.mark.parametrize("plan", ["int64", "uint8", "bool"])
def test_floats_are_never_taken_as_whole_numbers(plan: Any) -> None:
    assert f"is float32[B, 1], the plan expects {plan}[B, 1]" in refusal(
        pair(torch.zeros(2, 1)), inputs=(TensorSpec(dtype=plan, shape=("B", 1)),)
    )


def test_texts_and_uneven_samples_are_no_tensors() -> None:
    assert "x of row 0 of the dataset (counted from 0) is a str, which no tensor can" in refusal(
        Lazy([("text", 0)] * 2)
    )
    assert "rows 0 to 0 of the dataset cannot be put together" in refusal(Lazy([(np.array(["text"]), 0)]))
    uneven = Loader(
        Lazy([(torch.zeros(3), 0), (torch.zeros(2), 0)]), inputs=(X,), labels=Y, secret=b"secret", shuffle=False
    )
    with pytest.raises(DataError, match=r"rows 0 to 1 of the dataset cannot be put together .* the same shapes"):
        uneven.load("x", Batch(0, 0, 2))


def test_a_sample_that_raises_is_named() -> None:
    class Broken(Lazy):
        def __getitem__(self, row: int) -> Any:
            if row == 2:
                raise FileNotFoundError("scan-2.png")
            return self.samples[row]

    mine = Loader(Broken([(torch.zeros(3), 0)] * 4), inputs=(X,), labels=Y, secret=b"secret", shuffle=False)
    with pytest.raises(DataError, match=r"row 2 of the dataset .*FileNotFoundError: scan-2.png.*: mend or leave out"):
        mine.load("x", Batch(0, 0, 4))


def test_samples_fetched_at_once_must_be_as_many_as_asked() -> None:
    class Short(Lazy):
        def __getitems__(self, places: list[int]) -> list[Any]:
            return [self.samples[place] for place in places[:1]]

    mine = Loader(Short([(torch.zeros(3), 0)] * 4), inputs=(X,), labels=Y, secret=b"secret")
    with pytest.raises(DataError, match="returned 1 samples for 3 rows"):
        mine.load("x", Batch(0, 0, 3))


def test_a_subset_beyond_its_rows() -> None:
    assert "indices outside its 2 rows" in refusal(Subset(pair(torch.zeros(2, 3)), [0, 2]))
