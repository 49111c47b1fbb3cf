"""Claims about which rows a batch holds: a function of the order key, the epoch and the rows, and of nothing else."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from cutlayer.data import Loader
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch, micro_batches, step_count
from cutlayer.plan.tensors import TensorSpec
from cutlayer.protocol.messages import Rows

X = TensorSpec(dtype="float32", shape=("B", 2))
Y = TensorSpec(dtype="int64", shape=("B",))


class Lazy(Dataset[tuple[Tensor, int]]):
    """The rows of `numbered` without being a TensorDataset."""

    def __init__(self, rows: int, first: int = 0) -> None:
        self.rows, self.first = rows, first

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(self.first + row)), self.first + row


def numbered(rows: int, first: int = 0) -> TensorDataset:
    """Rows that hold their own number, as features and as label."""
    y = torch.arange(first, first + rows)
    return TensorDataset(y[:, None].float().expand(-1, 2), y)


def loader(
    dataset: Dataset[tuple[Tensor, ...]] | Dataset[tuple[Tensor, int]],
    *,
    secret: bytes = b"secret",
    shuffle: bool = True,
    held_out: Dataset[tuple[Tensor, ...]] | float = 0.0,
) -> Loader:
    return Loader(dataset, inputs=(X,), labels=Y, secret=secret, shuffle=shuffle, held_out=held_out)


def order(rows: Loader, epoch: int = 0, *, held_out: bool = False) -> list[int]:
    there = rows.rows.held_out if held_out else rows.rows.train
    (y,) = rows.load("y", Batch(epoch, 0, there, held_out))
    return [int(row) for row in y]


@pytest.mark.parametrize("lazy", [False, True])
def test_an_epoch_is_a_permutation_and_another_one_each_epoch(lazy: bool) -> None:
    rows = loader(Lazy(100) if lazy else numbered(100))
    orders = [order(rows, epoch) for epoch in range(4)]
    assert all(sorted(each) == list(range(100)) for each in orders)
    assert len({tuple(each) for each in orders}) == 4
    assert order(rows, 0) == orders[0], "an earlier epoch, asked for again, is as it was"


def test_the_order_depends_on_the_secret_and_not_on_the_global_generator() -> None:
    torch.manual_seed(1)
    one = order(loader(numbered(50)))
    torch.manual_seed(2)
    assert order(loader(numbered(50))) == one
    assert order(loader(numbered(50), secret=b"another")) != one


def test_without_shuffling_the_order_is_the_datasets_own_in_every_epoch() -> None:
    rows = loader(numbered(20), shuffle=False)
    assert order(rows, 0) == order(rows, 7) == list(range(20))


@given(
    rows=st.integers(2, 60),
    batch_size=st.integers(1, 70),
    micros=st.integers(1, 5),
    fraction=st.sampled_from([0.0, 0.01, 0.3, 0.99]),
    kind=st.sampled_from(["tensors", "subset", "lazy"]),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_row_is_lost_or_doubled_under_any_batch_size_and_micro_split(
    rows: int, batch_size: int, micros: int, fraction: float, kind: str, shuffle: bool
) -> None:
    if kind == "subset":
        mine = loader(Subset(numbered(rows + 3, -3), range(3, rows + 3)), shuffle=shuffle, held_out=fraction)
    else:
        mine = loader(Lazy(rows) if kind == "lazy" else numbered(rows), shuffle=shuffle, held_out=fraction)
    seen: dict[bool, list[int]] = {False: [], True: []}
    for held_out, count in ((False, mine.rows.train), (True, mine.rows.held_out)):
        for step in range(step_count(count, batch_size)):
            for start, stop in micro_batches(count, batch_size, step, micros):
                batch = Batch(3, start, stop, held_out)
                (x,), (y,) = mine.load("x", batch), mine.load("y", batch)
                assert x.shape == (batch.rows, 2)
                assert torch.equal(x[:, 0], y.float()), "features and labels are of the same rows"
                seen[held_out] += y.tolist()
    assert sorted(seen[False] + seen[True]) == list(range(rows)), "train and held-out rows are disjoint and complete"
    assert len(seen[False]) == mine.rows.train
    assert len(seen[True]) == mine.rows.held_out
    assert seen[False] == order(mine, 3), "a split does not change the order"


@pytest.mark.parametrize(
    ("rows", "fraction", "split"),
    [(10, 0.0, Rows(10, 0)), (10, 0.2, Rows(8, 2)), (10, 0.001, Rows(9, 1)), (10, 0.999, Rows(1, 9))],
)
def test_a_fraction_holds_out_that_many_rows_and_leaves_one_on_each_side(
    rows: int, fraction: float, split: Rows
) -> None:
    assert loader(numbered(rows), held_out=fraction).rows == split


def test_held_out_rows_are_the_same_in_every_epoch_in_their_own_order_and_chosen_by_the_secret() -> None:
    rows = loader(numbered(100), held_out=0.25)
    aside = order(rows, 0, held_out=True)
    assert aside == order(rows, 9, held_out=True) == sorted(aside)
    assert aside != list(range(25)), "chosen by chance, since files are often sorted by class"
    assert aside == order(loader(numbered(100), held_out=0.25, shuffle=False), held_out=True)
    assert aside != order(loader(numbered(100), held_out=0.25, secret=b"another"), held_out=True)


def test_training_rows_beside_held_out_ones_keep_their_own_order_without_shuffling() -> None:
    rows = loader(numbered(30), held_out=0.3, shuffle=False)
    assert order(rows) == sorted(set(range(30)) - set(order(rows, held_out=True)))


def test_a_second_dataset_is_held_out_whole_and_in_its_own_order() -> None:
    rows = loader(numbered(10), held_out=numbered(4, first=100))
    assert rows.rows == Rows(train=10, held_out=4)
    assert order(rows, 5, held_out=True) == [100, 101, 102, 103]
    assert sorted(order(rows, 5)) == list(range(10))


@pytest.mark.parametrize("fraction", [1.0, 1.5, -0.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=r"cannot be held out: give a fraction from 0 to below 1"):
        loader(numbered(10), held_out=fraction)


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(DataError, match="one row cannot be both trained on and held out: give more rows"):
        loader(numbered(1), held_out=0.5)


@pytest.mark.parametrize("lazy", [False, True])
def test_the_global_generators_are_left_as_they_were(lazy: bool) -> None:
    states = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    rows = loader(Lazy(9) if lazy else numbered(9), held_out=0.3)
    rows.load("x", Batch(0, 0, 4))
    rows.load("y", Batch(1, 0, 4))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state(legacy=False)) == repr(states[1])
    assert random.getstate() == states[2]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (Batch(0, 8, 12), "rows 8 to 12 were asked for, but there are 10 rows"),
        (Batch(0, 5, 5), "rows 5 to 5 were asked for"),
        (Batch(0, -1, 5), "rows -1 to 5 were asked for"),
        (Batch(0, 0, 1, True), "there are 0 held-out rows"),
    ],
)
def test_rows_that_are_not_there_are_refused_not_cut_short(batch: Batch, words: str) -> None:
    with pytest.raises(DataError, match=words):
        loader(numbered(10)).load("x", batch)


def test_a_source_other_than_x_and_y_is_refused() -> None:
    with pytest.raises(DataError, match="no source 'id': its rows offer x and y"):
        loader(numbered(10)).load("id", Batch(0, 0, 1))


def test_successive_batches_in_natural_order_are_views_of_the_whole() -> None:
    dataset = TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))
    rows = loader(dataset, shuffle=False)
    starts = [rows.load("x", Batch(0, start, start + 2))[0].data_ptr() for start in range(0, 10, 2)]
    assert {after - before for before, after in pairwise(starts)} == {2 * 2 * 4}
    assert starts[0] == dataset.tensors[0].data_ptr()
