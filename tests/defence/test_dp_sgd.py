"""DP-SGD on a segment that the cut's gradient drives: every row is clipped by itself, and the noise is what it says."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.defence.dp_sgd import DpSgd, PerSample, faults
from cutlayer.defence.noise import generator_of
from cutlayer.errors import Diverged, PlanError
from cutlayer.plan.tensors import TensorShape

SECRET = bytes(range(32))
SHAPE = TensorShape("float32", (4, 2))
SLACK = 1e-6


class Scaled(nn.Module):
    """Parameters of its own, which Opacus has no sampler for, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.inner = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.tanh(x) * self.scale)
        return out


class Twice(nn.Module):
    """One layer called twice, and weights tied with those of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tied(torch.tanh(self.first(torch.tanh(self.first(x)))))
        return out


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.Linear(8, 4, bias=False), nn.Tanh()
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 2), nn.Flatten()
    )


def sequences() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 4), nn.RMSNorm(4))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(9, (rows, 5), generator=torch.Generator().manual_seed(seed))


Inputs = Callable[[int], Tensor]
MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "dense": (dense, lambda rows: normal(rows, 6)),
    "convolutional": (convolutional, lambda rows: normal(rows, 2, 6, 6)),
    "sequences": (sequences, tokens),
    "own parameters": (Scaled, lambda rows: normal(rows, 6)),
    "called twice and tied": (Twice, lambda rows: normal(rows, 6)),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def made(kind: str) -> tuple[nn.Module, Inputs]:
    build, inputs = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().double().train(), inputs


def longhand(module: nn.Module, x: Tensor, gradient: Tensor, clip: float) -> dict[str, Tensor]:
    """One row at a time, on a copy."""
    module = copy.deepcopy(module)
    names = {name: p for name, p in module.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in names.items()}
    for row in range(len(x)):
        module.zero_grad()
        module(x[row : row + 1]).backward(gradient[row : row + 1])
        grads = {name: p.grad for name, p in names.items() if p.grad is not None}
        norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
        for name, grad in grads.items():
            total[name] += grad * min(1.0, clip / (norm + SLACK))
    return total


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert float((tensor - other[name]).abs().max()) <= tolerance, name


def generator(number: int = 0) -> torch.Generator:
    return generator_of(SECRET + bytes([number]))


# ---------------------------------------------------------------------- what a row adds


@every_model
@pytest.mark.parametrize("clip", [0.7, 1e6])
def test_each_row_is_clipped_over_all_parameters_as_one_at_a_time(kind: str, clip: float) -> None:
    module, inputs = made(kind)
    x = inputs(7)
    out = module(x).detach()
    cut = normal(*out.shape, seed=1) * torch.logspace(-2, 1, 7, dtype=torch.float64).view(7, *[1] * (out.dim() - 1))
    expected = longhand(module, x, cut, clip)
    samples = PerSample(module, DpSgd(clip=clip, noise_multiplier=0.0))
    module(x).backward(cut)
    samples.gather(7)
    assert gradients(module) == {}
    assert samples.finish(generator()) == 7
    assert_close(gradients(module), expected)
    norm = math.sqrt(sum(float((grad**2).sum()) for grad in gradients(module).values()))
    assert norm <= 7 * clip


def test_tickets_that_come_back_in_another_order_add_up_to_the_whole_mini_batch() -> None:
    module, inputs = made("convolutional")
    x = inputs(9)
    cut = normal(9, *module(x).shape[1:], seed=4) * 3
    expected = longhand(module, x, cut, 0.5)
    samples = PerSample(module, DpSgd(clip=0.5, noise_multiplier=0.0))
    parts = [slice(0, 4), slice(4, 8), slice(8, 9)]
    outputs = [module(x[part]) for part in parts]
    for which in (1, 0, 2):
        outputs[which].backward(cut[parts[which]])
        samples.gather(len(outputs[which]))
    assert samples.finish(generator()) == 9
    assert_close(gradients(module), expected)


def test_a_step_forgets_the_one_before() -> None:
    module, inputs = made("dense")
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0))
    for seed in (5, 6):
        x, cut = inputs(4), normal(4, 4, seed=seed)
        expected = longhand(module, x, cut, 1.0)
        module(x).backward(cut)
        samples.gather(4)
        samples.finish(generator())
        assert_close(gradients(module), expected)


def test_it_equals_opacus_own_optimizer_on_the_uncut_model() -> None:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    bottom, inputs = made("convolutional")
    top = nn.Linear(27, 3).double()
    x, labels = inputs(8) * 3, torch.arange(8) % 3
    # the clip of the whole model is of bottom and top together; so the top is frozen here
    layers = list(copy.deepcopy(bottom).children())
    whole = nn.Sequential(*layers, copy.deepcopy(top).requires_grad_(requires_grad=False))
    for layer in whole:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # which Opacus' own hooks cannot take
    reference = GradSampleModule(whole, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=0.8,
        expected_batch_size=8,
        loss_reduction="mean",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Opacus' hooks, where inputs need no gradient
        F.cross_entropy(reference(x), labels, reduction="mean").backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    samples = PerSample(bottom, DpSgd(clip=0.8, noise_multiplier=0.0))
    out = bottom(x)
    leaf = out.detach().requires_grad_()
    F.cross_entropy(top(leaf), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    out.backward(leaf.grad)
    samples.gather(8)
    samples.finish(generator())
    for parameter in bottom.parameters():
        assert parameter.grad is not None
        parameter.grad.div_(8)
    torch.optim.SGD(bottom.parameters(), lr=0.1).step()
    with torch.no_grad():
        for one, other in zip(bottom.parameters(), whole.parameters(), strict=False):  # the whole has the top's, too
            assert float((one - other).abs().max()) <= 1e-12


# ---------------------------------------------------------------------- noise


def test_noise_is_normal_of_the_promised_deviation_and_independent_by_step() -> None:
    module = nn.Linear(200, 100)
    samples = PerSample(module, DpSgd(clip=0.5, noise_multiplier=3.0))
    drawn = []
    for step in range(2):
        module(torch.zeros(4, 200)).backward(torch.zeros(4, 100))
        samples.gather(4)
        samples.finish(generator(step))
        drawn.append(torch.cat([gradient.reshape(-1) for gradient in gradients(module).values()]).double())
    for each in drawn:
        count = len(each)
        assert abs(float(each.mean())) < 5 * 1.5 / math.sqrt(count)
        assert abs(float(each.var()) / 1.5**2 - 1) < 5 * math.sqrt(2 / count)
        inside = float((each.abs() < 1.5).double().mean())
        assert abs(inside - math.erf(1 / math.sqrt(2))) < 5 * math.sqrt(0.2166 / count)
    together = float(torch.corrcoef(torch.stack(drawn))[0, 1])
    assert abs(together) < 5 / math.sqrt(len(drawn[0]))


def test_noise_is_added_to_the_clipped_sum_and_differs_by_what_was_drawn() -> None:
    module, inputs = made("dense")
    x, cut = inputs(5), normal(5, 4, seed=8)
    clean = longhand(module, x, cut, 1.0)
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=2.0))
    noisy = []
    for _ in range(2):
        module(x).backward(cut)
        samples.gather(5)
        samples.finish(generator(7))
        noisy.append(gradients(module))
    assert_close(noisy[0], noisy[1], 0.0)
    module(torch.zeros_like(x)).backward(torch.zeros_like(cut))
    samples.gather(5)
    samples.finish(generator(7))
    alone = gradients(module)
    assert_close({name: noisy[0][name] - alone[name] for name in clean}, clean)


def test_the_digest_is_of_the_clipped_sums() -> None:
    module, inputs = made("dense")
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=2.0))
    digests = []
    for change in (0.0, 0.0, 1e-9):
        module(inputs(5)).backward(normal(5, 4, seed=8) + change)
        samples.gather(5)
        digests.append(samples.digest)
        samples.finish(generator())
    assert digests[0] == digests[1] != digests[2]


def test_a_parameter_that_no_gradient_came_for_gets_noise_all_the_same() -> None:
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=1.0))
    module["used"](torch.ones(2, 3)).backward(torch.ones(2, 2))
    samples.gather(2)
    samples.finish(generator())
    assert all(p.grad is not None and bool((p.grad != 0).all()) for p in module.parameters())


def test_a_step_without_rows_releases_nothing() -> None:
    module = nn.Linear(3, 2)
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=1.0))
    assert samples.finish(generator()) == 0
    assert gradients(module) == {}


# ---------------------------------------------------------------------- the module stays what it is


@every_model
def test_the_module_keeps_its_names_its_outputs_and_after_close_its_gradients(kind: str) -> None:
    module, inputs = made(kind)
    x = inputs(4)
    before, names = {k: v.clone() for k, v in module.state_dict().items()}, list(dict(module.named_parameters()))
    out = module(x)
    out.backward(torch.ones_like(out))
    plain = gradients(module)
    module.zero_grad()
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0))
    assert torch.equal(module(x), out)
    module(x).backward(torch.ones_like(out))
    samples.gather(4)
    samples.finish(generator())
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert list(dict(module.named_parameters())) == names
    samples.close()
    module.zero_grad()
    module(x).backward(torch.ones_like(out))
    assert_close(gradients(module), plain, 0.0)


def test_evaluation_and_copies_leave_no_trace() -> None:
    module, inputs = made("own parameters")
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0))
    with torch.no_grad():
        module(inputs(3))
    module.eval()
    module(inputs(3))
    other = copy.deepcopy(module).train()
    out = other(inputs(3))
    out.backward(torch.ones_like(out))
    module.train()
    out = module(inputs(4))
    out.backward(torch.ones_like(out))
    samples.gather(4)
    assert samples.finish(generator()) == 4


def test_frozen_parameters_get_nothing_and_do_not_count_in_the_norm() -> None:
    module, inputs = made("dense")
    next(module.children()).requires_grad_(requires_grad=False)
    x, cut = inputs(5), normal(5, 4, seed=2) * 9
    expected = longhand(module, x, cut, 0.3)
    samples = PerSample(module, DpSgd(clip=0.3, noise_multiplier=0.0))
    module(x).backward(cut)
    samples.gather(5)
    samples.finish(generator())
    assert all(not name.startswith("0.") for name in gradients(module))
    assert_close(gradients(module), expected)


def test_in_bfloat16_autocast_gradients_have_the_parameters_own_dtype() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    x, cut = normal(5, 6).float(), normal(5, 4).float()
    expected = longhand(module, x, cut, 1.0)
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    out.backward(cut.to(out.dtype))
    samples.gather(5)
    samples.finish(generator())
    assert {gradient.dtype for gradient in gradients(module).values()} == {torch.float32}
    assert_close(gradients(module), expected, 0.1)


# ---------------------------------------------------------------------- refused


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("place", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(x + self.token)
        return out


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.BatchNorm1d(4), r"bottom\.1 \(BatchNorm1d\).*GroupNorm"),
        (nn.BatchNorm1d(4, affine=False), r"bottom\.1 \(BatchNorm1d\).*GroupNorm"),
        (nn.BatchNorm1d(4).requires_grad_(requires_grad=False), r"bottom\.1 \(BatchNorm1d\).*GroupNorm"),
        (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), r"bottom\.1 \(InstanceNorm1d\)"),
        (nn.LSTM(4, 4), r"bottom\.1 \(LSTM\).*DPLSTM"),
        (nn.MultiheadAttention(4, 2), r"bottom\.1 \(MultiheadAttention\)"),
        (Normed(), r"bottom\.1 \(Normed\), whose own parameters and dropout lie together"),
    ],
)
def test_what_cannot_be_trained_row_by_row_is_refused_by_name(layer: nn.Module, told: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(PlanError, match=told):
        PerSample(module, DpSgd(clip=1.0, noise_multiplier=1.0), "bottom")


def test_all_faults_are_told_at_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    assert len(faults(module, "bottom")) == 2
    assert faults(convolutional()) == []


def test_a_layer_that_is_not_called_with_rows_first_is_refused() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.reshape(-1, 3)).reshape(len(x), -1)
            return out

    module = Folded()
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0), "bottom")
    module(torch.ones(4, 5, 3)).backward(torch.ones(4, 10))
    with pytest.raises(
        PlanError, match=r"bottom: the layer of layer\.\w+ was called with 20 rows for a mini-batch of 4"
    ):
        samples.gather(4)


def test_a_layer_of_several_tensors_is_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x, x)
            return out

    module = Mixing()
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0), "bottom")
    with pytest.raises(PlanError, match=r"bottom\.layer, which is not called with one tensor"):
        module(torch.ones(4, 3))
    samples.close()
    assert module(torch.ones(4, 3)).shape == (4, 2)


def test_a_gradient_that_is_not_finite_stops_the_step() -> None:
    module = nn.Linear(3, 2)
    samples = PerSample(module, DpSgd(clip=1.0, noise_multiplier=0.0), "bottom")
    module(torch.ones(4, 3)).backward(torch.tensor([[math.inf, 0.0]] * 4))
    with pytest.raises(Diverged, match="bottom"):
        samples.gather(4)


# ---------------------------------------------------------------------- settings


def test_the_mechanism_is_that_of_replacing_a_row() -> None:
    """Two sums that differ in one row lie up to 2 clips apart."""
    mechanism = DpSgd(clip=0.5, noise_multiplier=3.0).mechanism(SHAPE)
    assert mechanism is not None
    assert (mechanism.kind, mechanism.scale, mechanism.sensitivity) == ("gaussian", 1.5, 1.0)
    assert mechanism.relation == "replace one row"
    module = nn.Linear(1, 1, bias=False).double()
    samples = PerSample(module, DpSgd(clip=0.5, noise_multiplier=0.0))
    sums = []
    for last in (1e6, -1e6):
        module(torch.ones(3, 1, dtype=torch.float64)).backward(
            torch.tensor([[1.0], [2.0], [last]], dtype=torch.float64)
        )
        samples.gather(3)
        samples.finish(generator())
        sums.append(gradients(module)["weight"].item())
    assert sums[0] - sums[1] == pytest.approx(mechanism.sensitivity, abs=1e-9)


def test_clipping_without_noise_bounds_nothing() -> None:
    assert DpSgd(clip=1.0, noise_multiplier=0.0).mechanism(SHAPE) is None
    assert not DpSgd(clip=1.0, noise_multiplier=0.0).neutral


def test_zero_strength_is_neutral() -> None:
    assert DpSgd(clip=0.0, noise_multiplier=0.0).neutral


@pytest.mark.parametrize(("clip", "multiplier"), [(-1.0, 1.0), (1.0, math.nan), (math.inf, 1.0), (0.0, 1.0)])
def test_settings_that_mean_nothing_are_refused(clip: float, multiplier: float) -> None:
    with pytest.raises(PlanError, match="dp_sgd: "):
        DpSgd(clip=clip, noise_multiplier=multiplier)
