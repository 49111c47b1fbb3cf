"""Defended runs against the uncut model with the same defence as a layer, as a term of the loss, or as a gradient."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.defence.dependence import distance_correlation
from cutlayer.errors import PlanError
from cutlayer.observe.tap import Seen
from cutlayer.plan.terms import DefenceTerms, Method

ROWS, BATCH, ROUNDS, LR = 24, 8, 2, 0.1
SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(("a", "b", "server"))}
CLIP, SIGMA = 0.7, 0.3


class Tapped:
    """Keeps what one party saw, in order."""

    def __init__(self, party: str = "a", purpose: str = "train") -> None:
        self.party, self.purpose = party, purpose
        self.seen: list[Seen] = []

    def __call__(self, seen: Seen) -> None:
        if seen.party == self.party and seen.ticket.purpose == self.purpose:
            self.seen.append(seen)

    def tensors(self, way: str, *, edge: str = "bottom->top") -> list[Tensor]:
        return [each.tensor.clone() for each in self.seen if each.edge == edge and each.way == way]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, dtype=torch.float64, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


def method(name: str, **options: Any) -> Method:
    return Method(name=name, options=options)


def run(
    tap: Tapped | None = None, secrets: dict[str, bytes] = SECRETS, model: nn.Module | None = None, **terms: Any
) -> Result:
    settings: dict[str, Any] = {"cut": "3", "data": {"a": rows()}, "lr": LR, "batch_size": BATCH, "rounds": ROUNDS}
    settings |= {"shuffle": False, "held_out": 0.0, "secrets": secrets, "taps": (tap,) if tap else ()}
    return simulate(model or network(), **settings | terms)


def weights(result: Result) -> dict[str, Tensor]:
    return dict(result.model_for("a").state_dict())


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = rows().tensors
    return [(x[at : at + BATCH], y[at : at + BATCH]) for _ in range(ROUNDS) for at in range(0, ROWS, BATCH)]


def assert_equal_weights(result: Result, model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights(result)[name], tensor, rtol=0, atol=1e-12)


def descend(module: nn.Module) -> None:
    """A step of plain SGD."""
    for parameter in module.parameters():
        assert parameter.grad is not None
        parameter.data -= LR * parameter.grad


def clipped(z: Tensor) -> Tensor:
    factor: Tensor = (CLIP / torch.linalg.vector_norm(z, dim=1, keepdim=True)).clamp(max=1.0)
    return z * factor


def test_noise_at_the_cut_equals_a_noisy_layer_of_the_uncut_model() -> None:
    tap = Tapped()
    result = run(tap, defence=DefenceTerms(forward=(method("gaussian", clip=CLIP, sigma=SIGMA),)))
    model = network()
    bottom, top = model[:4], model[4:]
    noises = []
    for (x, y), released in zip(batches(), tap.tensors("forward"), strict=True):
        safe = clipped(bottom(x))
        noises.append(released - safe.detach())
        model.zero_grad()
        torch.autograd.backward(F.cross_entropy(top(safe + noises[-1]), y))
        descend(model)
    assert_equal_weights(result, model)
    assert torch.cat(noises).std().item() == pytest.approx(SIGMA, rel=0.15)


def test_nopeek_equals_the_uncut_model_with_the_term_in_its_loss() -> None:
    alpha = 0.5
    result = run(defence=DefenceTerms(forward=(method("nopeek", alpha=alpha),)))
    model = network()
    for x, y in batches():
        model.zero_grad()
        z = model[:4](x)
        torch.autograd.backward(F.cross_entropy(model[4:](z), y) + alpha * distance_correlation(x, z))
        descend(model)
    assert_equal_weights(result, model)


def test_a_defended_gradient_is_all_that_the_bottom_learns_from() -> None:
    def binary() -> nn.Sequential:
        bottom = [*network()[:4].children()]
        return nn.Sequential(*bottom, nn.Linear(6, 1).double(), nn.Flatten(0))

    x, _ = rows().tensors
    data = TensorDataset(x, (x[:, 0] > 0).double())
    tap, model = Tapped("server"), binary()
    result = run(
        tap,
        model=copy.deepcopy(model),
        data={"a": data},
        loss="binary_cross_entropy_with_logits",
        defence=DefenceTerms(backward=(method("max_norm"),)),
    )
    for (x, _), gradient in zip(batches(), tap.tensors("backward"), strict=True):
        model.zero_grad()
        torch.autograd.backward(model[:4](x), gradient / BATCH)
        descend(model[:4])
    for name, tensor in model[:4].state_dict().items():
        torch.testing.assert_close(weights(result)[name], tensor, rtol=0, atol=1e-12)


NEUTRAL = {
    "gaussian": DefenceTerms(forward=(method("gaussian", clip=0.0, sigma=0.0),)),
    "laplace": DefenceTerms(forward=(method("laplace", clip=0.0, b=0.0),)),
    "shredder": DefenceTerms(forward=(method("shredder", scale=0.0),)),
    "nopeek": DefenceTerms(forward=(method("nopeek", alpha=0.0),)),
    "decorrelation": DefenceTerms(forward=(method("decorrelation", weight=0.0),)),
    "isotropic": DefenceTerms(backward=(method("isotropic", ratio=0.0),)),
    "label_dp": DefenceTerms(edge="y->top", forward=(method("label_dp", epsilon=64.0, correction="backward"),)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_defence_without_strength_changes_no_bit(name: str) -> None:
    plain, defended = weights(run()), weights(run(defence=NEUTRAL[name]))
    assert all(torch.equal(plain[each], defended[each]) for each in plain)


def test_noise_is_drawn_by_the_partys_own_secret_and_by_nothing_that_others_know() -> None:
    noisy = DefenceTerms(forward=(method("gaussian", clip=CLIP, sigma=SIGMA),))
    released = []
    for secret in (SECRETS, SECRETS, SECRETS | {"a": b"x" * 32}, SECRETS | {"server": b"x" * 32}):
        tap = Tapped()
        run(tap, secret, defence=noisy)
        released.append(tap.tensors("forward")[0])
    first, again, other_client, other_server = released
    assert torch.equal(first, again)
    assert torch.equal(first, other_server)
    plain = Tapped()
    run(plain)
    safe = clipped(plain.tensors("forward")[0])
    one, other = (first - safe).flatten(), (other_client - safe).flatten()
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.45


def test_labels_are_answered_at_random_once_and_the_same_in_every_epoch() -> None:
    tap = Tapped()
    run(tap, defence=DefenceTerms(edge="y->top", forward=(method("label_dp", epsilon=1.0),)))
    told = torch.cat(tap.tensors("forward", edge="y->top")).view(ROUNDS, ROWS)
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[0], rows().tensors[1])


EPSILON = 1.0
ODDS = torch.ones(3, 3).double() + (math.exp(EPSILON) - 1) * torch.eye(3).double()
CHANCES = ODDS / ODDS.sum(1)


def corrected(correction: str, scores: Tensor, answers: Tensor) -> Tensor:
    """Patrini's losses written out, the mean over rows."""
    if correction == "forward":
        return F.nll_loss((scores.softmax(1) @ CHANCES).log(), answers)
    return torch.sum(torch.linalg.inv(CHANCES)[answers] * -scores.log_softmax(1)) / len(scores)


@pytest.mark.parametrize("correction", ["forward", "backward"])
def test_a_loss_over_answers_is_corrected_by_who_ends_in_it(correction: str) -> None:
    """Against the uncut model, on the answers that crossed; and what it scores on held-out rows."""
    train, held_out = Tapped(), Tapped(purpose="eval")
    answered = DefenceTerms(edge="y->top", forward=(method("label_dp", epsilon=EPSILON, correction=correction),))
    result = run(None, taps=(train, held_out), defence=answered, held_out={"a": rows()})
    model = network()
    for (x, _), answers in zip(batches(), train.tensors("forward", edge="y->top"), strict=True):
        model.zero_grad()
        torch.autograd.backward(corrected(correction, model(x), answers))
        descend(model)
    assert_equal_weights(result, model)
    answers = torch.cat(held_out.tensors("forward", edge="y->top"))[-ROWS:]
    scores = model(rows().tensors[0]).detach()
    right = torch.linalg.inv(CHANCES)[answers, scores.argmax(1)].mean()
    assert not torch.equal(answers, rows().tensors[1])
    assert result.metrics["a"]["loss"] == pytest.approx(float(corrected(correction, scores, answers)), abs=1e-12)
    assert result.metrics["a"]["accuracy"] == pytest.approx(float(right), abs=1e-12)


@pytest.mark.parametrize(
    ("defence", "said"),
    [
        (DefenceTerms(edge="bottom->tip", forward=(method("gaussian", clip=1.0, sigma=1.0),)), "nothing crosses there"),
        (DefenceTerms(forward=(method("gausian", clip=1.0, sigma=1.0),)), "did you mean 'gaussian'"),
        (DefenceTerms(backward=(method("nopeek", alpha=1.0),)), "does not defend this way"),
        (DefenceTerms(forward=(method("label_dp", epsilon=1.0),)), "label_dp is for labels"),
        (DefenceTerms(forward=(method("gaussian", clip=1.0, sigma=1.0), method("shredder", scale=1.0))), "come last"),
        (DefenceTerms(segment="bottom", forward=(method("nopeek", alpha=1.0),)), "say update"),
        (DefenceTerms(backward=(method("marvell", s=1.0),)), "the labels have 3: say max_norm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_defend_is_refused_in_words(defence: DefenceTerms, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        run(defence=defence)


@pytest.mark.parametrize("terms", [{"batch_size": 1}, {"batch_size": 8, "micro_batches": 8}], ids=str)
def test_marvell_is_refused_where_no_mini_batch_has_two_rows(terms: dict[str, Any]) -> None:
    model = nn.Sequential(*network()[:4].children(), nn.Linear(6, 2).double())
    with pytest.raises(PlanError, match="compares rows of two classes"):
        run(model=model, defence=DefenceTerms(backward=(method("marvell", s=1.0),)), **terms)


@pytest.mark.parametrize("loss", ["mse_loss", {"name": "cross_entropy", "label_smoothing": 0.1}], ids=str)
def test_a_loss_that_cannot_be_corrected_is_refused(loss: Any) -> None:
    answers = DefenceTerms(edge="y->top", forward=(method("label_dp", epsilon=1.0, correction="forward"),))
    with pytest.raises(PlanError, match="label_dp corrects cross_entropy, nll_loss"):
        run(loss=loss, defence=answers)


def test_a_statistic_of_the_batch_is_refused_with_micro_batches() -> None:
    with pytest.raises(PlanError, match="micro_batches = 1"):
        run(defence=DefenceTerms(forward=(method("nopeek", alpha=0.5),)), micro_batches=2)


def test_dp_sgd_without_noise_equals_clipping_one_row_at_a_time() -> None:
    clip = 0.4
    entry = DefenceTerms(segment="bottom", update=(method("dp_sgd", clip=clip, noise_multiplier=0.0),))
    result = run(defence=entry)
    model = network()
    for x, y in batches():
        model.zero_grad()
        summed = [torch.zeros_like(parameter) for parameter in model[:4].parameters()]
        for row, label in zip(x, y, strict=True):
            own = torch.autograd.grad(F.cross_entropy(model(row[None]), label[None]), [*model[:4].parameters()])
            norm = torch.cat([each.flatten() for each in own]).norm()
            for total, each in zip(summed, own, strict=True):
                total += each * min(1.0, clip / (norm.item() + 1e-6))
        torch.autograd.backward(F.cross_entropy(model(x), y))
        for parameter, total in zip(model[:4].parameters(), summed, strict=True):
            parameter.grad = total / BATCH
        descend(model)
    assert_equal_weights(result, model)


def test_a_step_by_dp_sgd_is_written_down_as_a_release_of_weights() -> None:
    entry = DefenceTerms(segment="bottom", update=(method("dp_sgd", clip=1.0, noise_multiplier=30.0),))
    accountant = run(defence=entry).parties["a"].accounting.ledger.accountant
    assert 0 < accountant.epsilon("weights", 1e-5) < float("inf")
    assert accountant.epsilon("activations", 1e-5) == 0  # nothing is said of what nothing defends
