"""Segments in bfloat16 and compiled ones: near the exact run, the same bits each time, and nothing else crosses."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from shutil import which
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import PlanError, RunError
from cutlayer.model.calling import Calling
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.plan.terms import Method, Training
from cutlayer.protocol.messages import Ticket
from cutlayer.simulation import simulate_plan
from equivalence.longhand_topologies import assert_same_bits

TRAINING = Training(
    loss=Method(name="cross_entropy"), optimizer=Method(name="SGD", options={"lr": 0.1}), batch_size=4, rounds=1
)
TERMS: dict[str, Any] = {"optimizer": "adam", "lr": 0.01, "batch_size": 8, "rounds": 2, "seed": 2, "micro_batches": 2}
compiles = pytest.mark.skipif(
    (which("g++") or which("clang++")) is None or sys.platform == "win32", reason="torch.compile needs a C++ compiler"
)
quietly = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
"""What torch's own compiler says about torch."""


def rows(count: int = 40) -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 6, generator=random), torch.arange(count) % 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))


def trained(**terms: Any) -> Result:
    return simulate(network(), cut=("1", "3"), data={"a": rows()}, topology="u_shaped", **TERMS | terms)


def largest_difference(one: Result, other: Result) -> float:
    pairs = zip(one.model_for("a").parameters(), other.model_for("a").parameters(), strict=True)
    return max((mine - theirs).abs().max().item() for mine, theirs in pairs)


# ---------------------------------------------------------------------- autocast


@pytest.mark.parametrize("segments", [("bottom",), ("middle",), ("head",), ("bottom", "middle", "head")])
def test_a_run_in_bfloat16_is_near_the_exact_one_and_moves_as_many_bytes(segments: tuple[str, ...]) -> None:
    exact, found = trained(), trained(autocast=segments)
    assert 0 < largest_difference(exact, found) < 0.03
    assert found.bytes == exact.bytes
    assert found.agreement.plan.contents == exact.agreement.plan.contents


def test_the_order_of_delivery_changes_no_bit_in_bfloat16() -> None:
    first = trained(autocast=("middle", "head"))
    for seed in range(3):
        again = simulate_plan(first.agreement, {"a": rows()}, delivery=Random(seed))  # noqa: S311
        assert_same_bits(again, first)


class Two(nn.Module):
    """Gives a float and what is none, and notes in what its product was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.computed = torch.float32

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        product = self.layer(x)
        self.computed = product.dtype
        return product, product > 0


def segment(module: nn.Module, calling: Calling, **more: Any) -> ModelSegment:
    given = {"returns": {"in": (True,)}} | more
    return ModelSegment("bottom", Replica(module, TRAINING), secret=b"s" * 32, calling=calling, **given)


def test_what_crosses_has_the_dtype_that_the_plan_says_and_gradients_that_of_what_came() -> None:
    module = Two()
    at_work = segment(module, Calling(autocast=True, dtypes=(torch.float32, torch.bool)))
    outcome = at_work.forward(Ticket(0, "a", 0, 0, "train"), {"in": (torch.randn(5, 4),)})
    assert module.computed == torch.bfloat16
    assert [output.dtype for output in outcome.outputs] == [torch.float32, torch.bool]
    back = at_work.backward(Ticket(0, "a", 0, 0, "train"), {"out": (torch.randn(5, 3),)})
    assert back["in"][0].dtype == torch.float32
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.float32}


def test_a_loss_is_computed_outside_of_autocast_in_the_dtype_of_the_models_own_answer() -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    class Watched(Loss):
        def total(self, output: Tensor, labels: Tensor) -> Tensor:
            seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
            return super().total(output, labels)

    ends = {"returns": {"in": (True,), "y": (False,)}, "loss": Watched(TRAINING.loss), "target_edge": "y"}
    at_work = segment(nn.Linear(4, 3), Calling(autocast=True), **ends)
    inputs: Mapping[str, tuple[Tensor, ...]] = {"in": (torch.randn(5, 4),), "y": (torch.arange(5) % 3,)}
    at_work.forward(Ticket(0, "a", 0, 0, "train"), inputs)
    at_work.forward(Ticket(1, "a", 0, 0, "eval"), inputs)
    assert seen[0] == (torch.float32, False)
    assert set(seen) == {(torch.float32, False)}


def test_float64_is_never_made_less() -> None:
    def run(**terms: Any) -> Result:
        x, y = rows().tensors
        return simulate(network().double(), cut="1", data={"a": TensorDataset(x.double(), y)}, **TERMS | terms)

    assert_same_bits(run(autocast=("bottom", "top")), run())


# ---------------------------------------------------------------------- compiled


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """torch's, whose files go with the test, and which starts no processes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    from torch._inductor import config

    with config.patch({"compile_threads": 1, "cpp_cache_precompile_headers": False}):
        yield config
    torch.compiler.reset()


def test_what_is_not_compiled_is_called_as_it_is() -> None:
    at_work = trained().parties["a"].segments.values()
    assert all("compiled" not in vars(each.replica) for each in at_work)


@compiles
@quietly
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("compiler")
def test_a_compiled_segment_has_the_same_names_and_nearly_the_same_values() -> None:
    once: dict[str, Any] = {"rounds": 1, "micro_batches": 1}
    exact, found = trained(**once), trained(compiled=("bottom",), **once)
    assert list(found.weights_of("a")) == list(exact.weights_of("a"))
    assert largest_difference(exact, found) < 1e-4
    at_work = dict(found.parties["a"].segments)
    assert {key[0] for key, each in at_work.items() if "compiled" in vars(each.replica)} == {"bottom"}


@quietly
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_a_compiler_a_sentence_says_what_to_do(compiler: Any) -> None:
    without = compiler.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
    with without, pytest.raises(RunError, match=r"bottom cannot be compiled here .*: install a C\+\+ compiler such as"):
        trained(compiled=("bottom",))


# ---------------------------------------------------------------------- refused


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such segment in bfloat16": (
        {"autocast": ("midle",)},
        "'midle' is no segment of u_shaped: did you mean 'middle'",
    ),
    "no such segment compiled": ({"compiled": ("top",)}, "training.compiled: 'top' is no segment of u_shaped"),
    "compiled, with older weights": (
        {"compiled": ("bottom",), "staleness": 1},
        "by training.staleness bottom is called",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    terms, sentence = REFUSED[name]
    with pytest.raises(PlanError, match=sentence):
        trained(**terms)


def test_a_segment_without_staleness_may_be_compiled_beside_one_with() -> None:
    trained(compiled=("head",), staleness=1, rounds=0)
