"""Tokens and patches in another order."""

from itertools import permutations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from cutlayer.defence.defence import Context
from cutlayer.defence.patch_shuffle import PatchShuffle
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape


def shuffled(defence: PatchShuffle, tensor: Tensor, seed: int = 0) -> Tensor:
    return defence.release(tensor, Context(generator=torch.Generator().manual_seed(seed)), {})


def numbered(batch: int, tokens: int, features: int = 2) -> Tensor:
    """Each token has its number in its row in every feature."""
    return torch.arange(tokens, dtype=torch.float32)[None, :, None].expand(batch, tokens, features)


def test_a_row_keeps_its_tokens_whole_and_each_row_has_an_order_of_its_own() -> None:
    given = shuffled(PatchShuffle(), numbered(50, 12))
    assert torch.equal(given[..., 0], given[..., 1])
    assert torch.equal(given[..., 0].sort(1).values, numbered(50, 12)[..., 0])
    assert len({tuple(row) for row in given[..., 0].tolist()}) == 50


def test_every_order_is_as_likely_as_any_other() -> None:
    given = shuffled(PatchShuffle(keep=1), numbered(12_000, 5))[..., 0].long()
    counts = [int((given == torch.tensor([0, *order])).all(1).sum()) for order in permutations(range(1, 5))]
    assert sum(counts) == 12_000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("share", "most"), [(1.0, 9), (0.5, 4), (0.25, 2)])
def test_the_first_tokens_stay_and_a_share_of_the_others_moves(share: float, most: int) -> None:
    given = shuffled(PatchShuffle(share=share, keep=1), numbered(2000, 10))[..., 0]
    moved = given != numbered(2000, 10)[..., 0]
    assert not bool(moved[:, 0].any())
    # Of a random order of n tokens one is expected to stay where it is.
    assert float(moved.float().sum(1).mean()) == pytest.approx(most - 1, abs=0.15)
    assert int(moved.sum(1).max()) == most
    assert float(moved[:, 1:].float().mean(0).std()) < 0.03


def test_patches_of_an_image_move_whole() -> None:
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    given = shuffled(PatchShuffle(patch=2), images)
    for image, safer in zip(images, given, strict=True):
        corners = [(row, column) for row in (0, 2) for column in (0, 2, 4)]
        before = [image[:, row : row + 2, column : column + 2] for row, column in corners]
        after = [safer[:, row : row + 2, column : column + 2] for row, column in corners]
        found = [next(at for at, patch in enumerate(before) if torch.equal(patch, each)) for each in after]
        assert sorted(found) == list(range(6))
    assert not torch.equal(given, images)


@pytest.mark.parametrize("shape", [(3, 5, 2), (2, 2, 4, 4)])
def test_gradients_come_back_in_the_rows_own_order(shape: tuple[int, ...]) -> None:
    defence = PatchShuffle(patch=2)
    tensor = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (back,) = torch.autograd.grad((shuffled(defence, tensor) * weight).sum(), tensor)
    assert torch.equal(shuffled(defence, back), weight)


def test_a_transformer_without_positions_learns_the_same_from_tokens_in_any_order() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        top = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    tokens = torch.randn(4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    plain, safer = (top(given)[:, 0].square().sum() for given in (tokens, shuffled(PatchShuffle(keep=1), tokens)))
    assert torch.allclose(safer, plain, rtol=1e-12)
    (one,), (other,) = (torch.autograd.grad(loss, tokens) for loss in (plain, safer))
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_equal_seeds_give_equal_orders_and_others_others() -> None:
    tensor = numbered(4, 20)
    assert torch.equal(shuffled(PatchShuffle(), tensor, 1), shuffled(PatchShuffle(), tensor, 1))
    assert not torch.equal(shuffled(PatchShuffle(), tensor, 1), shuffled(PatchShuffle(), tensor, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_dtype_stay_and_the_tensor_is_not_changed(dtype: torch.dtype) -> None:
    for shape in ((4, 6, 2), (0, 6, 2), (4, 6, 0), (2, 3, 4, 4), (0, 3, 4, 4)):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
        before = tensor.clone()
        safer = shuffled(PatchShuffle(patch=2), tensor)
        assert (safer.shape, safer.dtype) == (shape, dtype)
        assert torch.equal(tensor, before)


def test_zero_strength_is_the_very_same_tensor_and_none_bounds_anything() -> None:
    tensor = numbered(2, 3)
    assert PatchShuffle(share=0.0).neutral
    assert not PatchShuffle().neutral
    assert shuffled(PatchShuffle(share=0.0), tensor) is tensor
    assert PatchShuffle().mechanism(TensorShape("float32", (8, 4, 2))) is None


def test_what_cannot_be_shuffled_is_refused_in_the_plan() -> None:
    defence = PatchShuffle(patch=2, keep=1)
    for good in ((8, 5, 2), (8, 3, 4, 4)):
        assert defence.fault(TensorShape("float32", good)) is None
    assert "does not divide" in str(defence.fault(TensorShape("float32", (8, 3, 4, 5))))
    assert "neither" in str(defence.fault(TensorShape("float32", (8, 5))))
    assert "fewer than two" in str(defence.fault(TensorShape("float32", (8, 2, 5))))
    assert "fewer than two" in str(PatchShuffle(share=0.1).fault(TensorShape("float32", (8, 10, 5))))
    assert "defends floats" in str(defence.fault(TensorShape("int64", (8, 5, 2))))


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": -0.1}, {"keep": -1}, {"patch": 0}])
def test_options_that_make_no_sense_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=next(iter(options))):
        PatchShuffle(**options)
