"""Claims about what a batch holds: the same tensors by the fast and the slow path, in the plan's shapes and dtypes."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from cutlayer.data import Loader
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch
from cutlayer.plan.tensors import DType, TensorSpec

X = TensorSpec(dtype="float32", shape=("B", 3))
Y = TensorSpec(dtype="int64", shape=("B",))


class Lazy(Dataset[Any]):
    """The samples of any sequence, and how often each was fetched."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        self.fetched.append(row)
        return self.samples[row]


class AtOnce(Lazy):
    """Offers its samples many at a time."""

    def __getitems__(self, rows: list[int]) -> list[Any]:
        self.fetched += rows
        return [self.samples[row] for row in rows]


class Noisy(Lazy):
    """Adds noise from all three global generators."""

    def __getitem__(self, row: int) -> Any:
        x, y = self.samples[row]
        return x + torch.rand(3) + random.random() + np.random.rand(), y  # noqa: S311


def tensors(rows: int = 12, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(rows, 3, generator=generator).to(dtype), torch.arange(rows) % 4)


def loader(dataset: Dataset[Any], **terms: Any) -> Loader:
    defaults: dict[str, Any] = {"inputs": (X,), "labels": Y, "secret": b"secret"}
    return Loader(dataset, **(defaults | terms))


def batches(rows: Loader) -> list[tuple[Tensor, Tensor]]:
    parts = [Batch(epoch, start, start + 4) for epoch in range(2) for start in range(0, rows.rows.train - 3, 4)]
    parts += [Batch(0, 0, rows.rows.held_out, True)] * bool(rows.rows.held_out)
    return [(rows.load("x", batch)[0], rows.load("y", batch)[0]) for batch in parts]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
@pytest.mark.parametrize("lazy", [Lazy, AtOnce])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_slow_path_gives_the_fast_paths_tensors(
    shuffle: bool, held_out: float, lazy: type[Lazy], dtype: torch.dtype
) -> None:
    fast = batches(loader(tensors(dtype=dtype), shuffle=shuffle, held_out=held_out))
    slow = batches(loader(lazy(tensors(dtype=dtype)), shuffle=shuffle, held_out=held_out))
    assert len(fast) == len(slow) > 2
    for (x, y), (slow_x, slow_y) in zip(fast, slow, strict=True):
        assert (x.dtype, y.dtype) == (slow_x.dtype, slow_y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(x, slow_x)
        assert torch.equal(y, slow_y)


@pytest.mark.parametrize("kind", [Lazy, AtOnce])
@pytest.mark.parametrize("sources", ["xy", "yx"])
def test_features_and_labels_of_a_batch_are_fetched_once(kind: type[Lazy], sources: str) -> None:
    dataset = kind(tensors())
    rows = loader(dataset, shuffle=False)
    dataset.fetched.clear()
    for source in sources:
        rows.load(source, Batch(0, 4, 8))
    assert dataset.fetched == [4, 5, 6, 7]


def test_a_batch_written_to_by_its_consumer_comes_anew() -> None:
    rows = loader(Lazy(tensors()))
    (first,) = rows.load("x", Batch(0, 0, 4))
    kept = first.clone()
    first.zero_()
    assert torch.equal(rows.load("x", Batch(0, 0, 4))[0], kept)


def test_random_transforms_draw_the_same_whatever_ran_before_and_other_noise_in_other_epochs() -> None:
    samples = [(torch.zeros(3), 0)] * 8
    (one,) = loader(Noisy(samples)).load("x", Batch(0, 4, 8))
    torch.rand(3), random.random(), np.random.rand()  # noqa: S311
    rows = loader(Noisy(samples))
    rows.load("x", Batch(0, 0, 4))
    assert torch.equal(rows.load("x", Batch(0, 4, 8))[0], one)
    assert not torch.equal(rows.load("x", Batch(1, 4, 8))[0], one)
    assert not torch.equal(loader(Noisy(samples), secret=b"another").load("x", Batch(0, 4, 8))[0], one)
    assert len(set(one.flatten().tolist())) == 12, "the samples of a batch draw one after the other"


def test_a_row_that_fails_leaves_the_global_generators_as_they_were() -> None:
    rows = loader(Noisy([(torch.zeros(3), 0), (torch.zeros(3), "text")]), shuffle=False)
    state = torch.get_rng_state(), random.getstate()
    with pytest.raises(DataError):
        rows.load("x", Batch(0, 0, 2))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (torch.tensor([1.0, 2.0]), ("B", 2)),
        (np.array([1.0, 2.0]), ("B", 2)),
        (np.float64(3.0), ("B",)),
        (3.0, ("B",)),
        (3, ("B",)),
        (True, ("B",)),
    ],
    ids=["tensor", "array", "scalar", "float", "int", "bool"],
)
def test_features_may_be_tensors_arrays_and_numbers(x: Any, shape: tuple[str | int, ...]) -> None:
    spec = TensorSpec(dtype="float32", shape=shape)
    (loaded,) = loader(Lazy([(x, 0)] * 4), inputs=(spec,)).load("x", Batch(0, 0, 4))
    assert loaded.dtype is torch.float32
    assert torch.equal(loaded, torch.as_tensor(x).float().expand(4, *loaded.shape[1:]))


def test_several_inputs_come_as_a_tuple_or_side_by_side() -> None:
    specs = (X, TensorSpec(dtype="int64", shape=("B",), differentiable=False))
    x, ids, y = torch.randn(6, 3), torch.arange(6), torch.zeros(6, dtype=torch.int64)
    nested = Lazy([((x[row], ids[row]), y[row]) for row in range(6)])
    for dataset in (TensorDataset(x, ids, y), Lazy(TensorDataset(x, ids, y)), nested):
        found = loader(dataset, inputs=specs, shuffle=False).load("x", Batch(0, 2, 5))
        assert torch.equal(found[0], x[2:5])
        assert torch.equal(found[1], ids[2:5])


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("of_data", "of_plan"), [((), ("B", 1)), ((1,), ("B",)), ((1, 2), ("B", 2)), ((), ("B",))])
def test_labels_may_differ_from_the_plan_in_sizes_of_one(
    lazy: bool, of_data: tuple[int, ...], of_plan: tuple[str | int, ...]
) -> None:
    dataset = TensorDataset(torch.randn(5, 3), torch.arange(5 * (2 in of_data) + 5).reshape(5, *of_data))
    spec = TensorSpec(dtype="int64", shape=of_plan)
    rows = loader(Lazy(dataset) if lazy else dataset, labels=spec, shuffle=False)
    (y,) = rows.load("y", Batch(0, 1, 4))
    assert y.shape == spec.for_rows(3).shape
    assert torch.equal(y.flatten(), dataset.tensors[1][1:4].flatten())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_integer_labels_become_int64(dtype: torch.dtype) -> None:
    rows = loader(TensorDataset(torch.randn(2, 3), torch.tensor([1, 0]).to(dtype)), shuffle=False, classes=2)
    (y,) = rows.load("y", Batch(0, 0, 2))
    assert y.dtype is torch.int64
    assert y.tolist() == [1, 0]


def test_batches_are_aligned_and_without_a_graph_wherever_the_tensor_came_from() -> None:
    memory = np.zeros(4 * 16 + 32, dtype=np.float32)
    offset = next(place for place in range(16) if (memory.ctypes.data + 4 * place) % 64 == 4)
    misaligned = torch.from_numpy(memory[offset : offset + 64].reshape(4, 16)).requires_grad_()
    labels = torch.zeros(4, dtype=torch.int64)
    spec = TensorSpec(dtype="float32", shape=("B", 16))
    for x in (misaligned, torch.zeros(16, 4).T):
        (batch,) = loader(TensorDataset(x, labels), inputs=(spec,), shuffle=False).load("x", Batch(0, 1, 3))
        assert batch.data_ptr() % 64 == 0
        assert batch.is_contiguous()
        assert not batch.requires_grad


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("lazy", [False, True])
def test_pixels_of_uint8_are_taken_as_floats_since_no_value_is_lost(dtype: DType, lazy: bool) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    whole = TensorDataset(pixels[:, None], torch.zeros(256, dtype=torch.int64))
    spec = TensorSpec(dtype=dtype, shape=("B", 1))
    (x,) = loader(Lazy(whole) if lazy else whole, inputs=(spec,), shuffle=False).load("x", Batch(0, 0, 256))
    assert x.flatten().tolist() == list(range(256))
