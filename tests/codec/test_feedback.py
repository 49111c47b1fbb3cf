"""Error feedback: nothing is lost, only late; per channel and per sample; saved, capped."""

import pytest
import torch
from torch import Tensor

from codec.codecs import stage
from cutlayer.codec.feedback import Coder, memory_bytes
from cutlayer.codec.registry import build
from cutlayer.codec.sections import shape_of
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

TOPK = build([stage("topk", share=0.1)])


def sent(coder: Coder, tensor: Tensor, rows: Tensor | None = None) -> Tensor:
    return coder.codec.decode(coder.encode(tensor, 0, rows).payload, shape_of(tensor))


def test_what_channel_feedback_left_out_is_sent_later() -> None:
    tensors = [torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(at)) for at in range(30)]
    coder = Coder(codec=TOPK, feedback="channel")
    arrived = torch.stack([sent(coder, tensor) for tensor in tensors]).sum(0)
    owed = coder.state()["residual"]
    assert torch.allclose(arrived + owed, torch.stack(tensors).sum(0), atol=1e-4)
    assert float(owed.abs().max()) < 10


def test_a_smaller_last_batch_has_the_first_rows_residuals() -> None:
    coder = Coder(codec=TOPK, feedback="channel")
    first, last = torch.randn(4, 20), torch.randn(2, 20)
    one = sent(coder, first)
    before = coder.state()["residual"]
    two = sent(coder, last)
    after = coder.state()["residual"]
    assert torch.equal(before[2:], after[2:])
    assert torch.allclose(one[:2] + two + after[:2], first[:2] + last, atol=1e-5)
    larger = torch.randn(6, 20)
    assert torch.allclose(sent(coder, larger)[4:] + coder.state()["residual"][4:], larger[4:], atol=1e-5)


def test_sample_feedback_follows_its_rows_in_any_order() -> None:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    coder = Coder(codec=TOPK, feedback="sample")
    arrived = torch.zeros_like(x)
    for epoch in range(8):
        for rows in torch.split(torch.randperm(6, generator=torch.Generator().manual_seed(epoch)), 4):
            arrived[rows] += sent(coder, x[rows], rows)
    state = coder.state()
    owed = torch.zeros_like(x).index_copy_(0, state["rows"], state["residual"])
    assert torch.allclose(arrived + owed, 8 * x, atol=1e-4)


@pytest.mark.parametrize("feedback", ["channel", "sample"])
def test_a_saved_state_goes_on_bit_for_bit(feedback: str) -> None:
    generator = torch.Generator().manual_seed(5)
    coder = Coder(codec=TOPK, feedback=feedback)
    steps = [(torch.randn(4, 20, generator=generator), torch.randperm(9, generator=generator)[:4]) for _ in range(6)]
    for tensor, rows in steps[:3]:
        coder.encode(tensor, 0, rows)
    other = Coder(codec=TOPK, feedback=feedback)
    other.load(coder.state())
    for tensor, rows in steps[3:]:
        assert torch.equal(other.encode(tensor, 0, rows).payload, coder.encode(tensor, 0, rows).payload)
    assert all(torch.equal(other.state()[name], value) for name, value in coder.state().items())


def test_without_feedback_there_is_no_state() -> None:
    coder = Coder(codec=TOPK)
    x = torch.randn(3, 20)
    assert torch.equal(coder.encode(x, 1).payload, TOPK.encode(x, 1).payload)
    assert coder.state() == {}
    coder.load({})


def test_integers_and_lossless_codecs_have_no_feedback() -> None:
    coder = Coder(codec=build([stage("zstd")]), feedback="channel")
    coder.encode(torch.arange(5), 0)
    coder.encode(torch.ones(2, 3), 0)
    assert coder.state() == {}


def test_memory_above_the_cap_is_refused_with_its_size_and_the_mend() -> None:
    shape = TensorShape("float32", (4, 20))
    assert memory_bytes(10, shape) == 10 * (80 + 8)
    coder = Coder(codec=TOPK, feedback="sample", cap_bytes=memory_bytes(6, shape))
    coder.encode(torch.ones(4, 20), 0, torch.arange(4))
    coder.encode(torch.ones(4, 20), 0, torch.arange(2, 6))
    before = coder.state()
    with pytest.raises(CodecError, match=r"8 rows .* the cap is .*: raise the cap, or say feedback = 'channel'"):
        coder.encode(torch.ones(4, 20), 0, torch.arange(4, 8))
    assert torch.equal(coder.state()["residual"], before["residual"])
    held = coder._residual
    assert held is not None
    assert held.nbytes <= coder.cap_bytes


@pytest.mark.parametrize(
    ("rows", "said"),
    [(None, "needs the number"), (torch.arange(3), "needs the number"), (torch.tensor([1, 1]), "same row twice")],
)
def test_rows_without_numbers_are_refused(rows: Tensor | None, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        Coder(codec=TOPK, feedback="sample").encode(torch.ones(2, 5), 0, rows)


def test_tensors_that_do_not_fit_the_residuals_are_refused() -> None:
    coder = Coder(codec=TOPK, feedback="channel")
    coder.encode(torch.ones(2, 5), 0)
    for other in (torch.ones(2, 6), torch.ones(2, 5, dtype=torch.float64)):
        with pytest.raises(CodecError, match="feedback has residuals of"):
            coder.encode(other, 0)
    with pytest.raises(CodecError, match="no dimension"):
        coder.encode(torch.tensor(1.0), 0)


def test_a_state_of_another_feedback_and_an_unknown_word_are_refused() -> None:
    with pytest.raises(CodecError, match="none of feedback"):
        Coder(codec=TOPK, feedback="channel").load({"residual": torch.ones(1, 2), "rows": torch.arange(1)})
    with pytest.raises(PlanError, match="did you mean 'sample'"):
        Coder(codec=TOPK, feedback="samples")
