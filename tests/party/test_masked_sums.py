"""Sums under masks: what reaches the aggregator is noise and tells but the sum; what does not fit is refused."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import CutlayerError, RunError
from cutlayer.keys import PublicKeys, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys
from cutlayer.model.state import ReplicaState, from_bytes, to_bytes
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.masking import WORDS, MaskedSum
from cutlayer.party.replicas import Replicas
from cutlayer.party.sealed import Unsealed, unsealed
from cutlayer.plan.terms import PartyTerms
from cutlayer.protocol.events import Add, Give
from cutlayer.simulation import simulate_plan

SUMMED = ["splitfed_v1", "splitfed_v2", "parallel"]
CLIENTS = ("a", "b", "c")
SECRETS = {name: name.encode() * 32 for name in (*CLIENTS, "server", "aggregator")}


def rows(count: int, seed: int) -> TensorDataset:
    random = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 40, generator=random), torch.randint(0, 3, (count,), generator=random))


DATA = {"a": rows(10, 0), "b": rows(7, 1), "c": rows(12, 2)}


def network(*, unused: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    bottom = nn.Linear(40, 200)
    if unused:
        bottom.unused = nn.Parameter(torch.ones(3))
    return nn.Sequential(bottom, nn.Tanh(), nn.Linear(200, 3))


def run(schedule: str, model: nn.Module | None = None, *, masked: bool = True, **terms: Any) -> Result:
    settings: dict[str, Any] = {"lr": 0.1, "batch_size": 4, "rounds": 2, "local_steps": 2} | terms
    model = model or network()
    return simulate(model, cut="1", data=DATA, schedule=schedule, secure_aggregation=masked, **settings)


def largest_difference(one: Result, other: Result) -> float:
    pairs = zip(one.model_for("a").state_dict().values(), other.model_for("a").state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


@dataclass
class Seen:
    """What clients would have sent, what they sent, and what the aggregator added."""

    plain: list[dict[str, Tensor]] = field(default_factory=list)
    sent: list[Tensor] = field(default_factory=list)
    gives: list[Give] = field(default_factory=list)
    added: list[Tensor] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen, share, add = Seen(), MaskedSum.share, MaskedSum.add

    def shared(own: MaskedSum, give: Give, state: ReplicaState) -> ReplicaState:
        masked = share(own, give, state)
        seen.plain.append(state.copied().tensors)
        seen.gives.append(give)
        seen.sent.append(masked.tensors[WORDS])
        return masked

    def added(own: MaskedSum, action: Add, state: ReplicaState) -> None:
        seen.added.append(state.tensors[WORDS])
        add(own, action, state)

    monkeypatch.setattr(MaskedSum, "share", shared)
    monkeypatch.setattr(MaskedSum, "add", added)
    return seen


# ---------------------------------------------------------------------- what the aggregator sees


@pytest.mark.parametrize("schedule", SUMMED)
@pytest.mark.parametrize("same", [False, True], ids=["an aggregator of its own", "the server"])
def test_each_share_that_reaches_the_aggregator_is_uniform(schedule: str, same: bool, seen: Seen) -> None:
    run(schedule, aggregator_sees_weights=same)
    assert len(seen.added) == len(seen.sent) == (6 if schedule != "parallel" else 12)
    for words in seen.added:
        counts = np.bincount(words.numpy().view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
        signs = torch.nn.functional.one_hot((words < 0).long(), 2).sum(0)
        assert stats.chisquare(signs.numpy()).pvalue > 1e-4


def test_no_number_of_a_share_reaches_the_aggregator(seen: Seen) -> None:
    """Nor do two shares correlate with what they hide."""
    run("splitfed_v1")
    for plain, words in zip(seen.plain, seen.sent, strict=True):
        body = to_bytes(ReplicaState(tensors={WORDS: words}, counts={}))
        for tensor in plain.values():
            for value in tensor.flatten()[:50].tolist():
                for dtype in (np.float32, np.float64):
                    assert np.array([value], dtype).tobytes() not in body
        hidden = torch.cat([plain[name].flatten() for name in sorted(plain)]).double()
        noise = words[-len(hidden) :].double()
        assert stats.pearsonr(hidden.numpy(), noise.numpy()).pvalue > 1e-3


def test_what_differs_between_two_shares_under_one_mask_is_what_differs_between_what_they_hide() -> None:
    """So the mask is a one-time pad: it does not depend on the share, and it must not serve twice."""
    maskers, give, state = setting()
    other = {name: tensor + 1 for name, tensor in state.tensors.items()}
    words = maskers["a"].share(give, state).tensors[WORDS]
    moved = maskers["a"].share(give, ReplicaState(tensors=other, counts={})).tensors[WORDS]
    scale = give.among["a"] / sum(give.among.values()) * 2**36
    torch.testing.assert_close((moved - words)[len(state.tensors) :].double() / scale, torch.ones(3 + 12).double())
    assert (moved - words)[: len(state.tensors)].tolist() == [0] * len(state.tensors)


def test_a_share_given_again_has_the_same_bits_and_in_another_run_or_sum_or_company_others() -> None:
    maskers, give, state = setting()
    words = maskers["a"].share(give, state).tensors[WORDS]
    assert torch.equal(words, setting()[0]["a"].share(give, state).tensors[WORDS])
    others = [
        maskers["a"].share(replace(give, round=1), state),
        maskers["a"].share(replace(give, among={"a": 10.0, "b": 7.0}), state),
        maskers["a"].share(replace(give, among={"a": 10.0, "b": 7.0, "c": 13.0}), state),
        setting(run="another")[0]["a"].share(give, state),
        setting(secrets={"a": bytes(32)})[0]["a"].share(give, state),
    ]
    for other in others:
        assert (other.tensors[WORDS] != words).all()
    torch.testing.assert_close(
        maskers["a"].share(replace(give, number=9), state).tensors[WORDS], words
    )  # weights: once a round, wherever each client's share stands
    summed = replace(give, of="gradients")
    one, two = (maskers["a"].share(replace(summed, number=number), state).tensors[WORDS] for number in (1, 2))
    assert (one != two).all()


def setting(
    run: str = "run", secrets: dict[str, bytes] | None = None
) -> tuple[dict[str, MaskedSum], Give, ReplicaState]:
    """All parties' hands at masks for a small network, and a share to give."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    base = agreement(model)
    replicas = Replicas(base.plan, base.parts_of)
    seals = unsealed(SECRETS | (secrets or {}))
    maskers = {
        name: MaskedSum(base.plan, name, replicas, run=lambda: run, seals=seals[name])
        for name in base.plan.terms.parties
    }
    give = Give(4, "share", "weights", "aggregator", (("bottom", "a"),), 0.0, 0, {"a": 10.0, "b": 7.0, "c": 12.0})
    random = torch.Generator().manual_seed(0)
    tensors = {
        "model.0.weight": torch.randn(3, 4, generator=random, dtype=torch.float64),
        "model.0.bias": torch.randn(3, generator=random, dtype=torch.float64),
    }
    return maskers, give, ReplicaState(tensors=tensors, counts={})


def agreement(model: nn.Module) -> Agreement:
    data = {name: TensorDataset(torch.zeros(4, 4), torch.zeros(4).long()) for name in CLIENTS}
    settings: dict[str, Any] = {"rounds": 0, "schedule": "splitfed_v1", "secure_aggregation": True}
    return simulate(model, cut="0", data=data, lr=0.1, batch_size=4, **settings).agreement


# ---------------------------------------------------------------------- what comes of it


@pytest.mark.parametrize("schedule", SUMMED)
def test_what_is_hidden_does_not_depend_on_the_masks(schedule: str) -> None:
    """Masks cancel to the bit, so other keys give the same run, and sealers that are pinned do."""
    base = run(schedule)
    other = simulate_plan(base.agreement, DATA, seals=unsealed({name: bytes(32 * [1]) for name in SECRETS}))
    assert base.history == other.history
    assert largest_difference(base, other) == 0


def test_parties_with_pinned_keys_give_the_bits_of_the_simulation(tmp_path: Path) -> None:
    base = run("splitfed_v2")
    names = tuple(base.agreement.plan.terms.parties)
    folder = make_demo_kit(tmp_path, names)
    keys: dict[str, PublicKeys] = {name: read_public_keys(folder / f"{name}.pub", name) for name in names}
    sealed = simulate_plan(base.agreement, DATA, seals={name: load_sealer(folder, name, keys) for name in names})
    assert largest_difference(base, sealed) == 0
    assert base.bytes == sealed.bytes


def test_a_parameter_without_a_gradient_has_none_after_the_sum_either() -> None:
    """With a gradient of zeros the weight decay would change it."""
    decayed: dict[str, Any] = {"optimizer": {"name": "SGD", "lr": 0.1, "weight_decay": 0.1}, "lr": None}
    masked = run("parallel", network(unused=True), **decayed)
    plain = run("parallel", network(unused=True), masked=False, **decayed)
    assert largest_difference(masked, plain) < 1e-6
    assert torch.equal(masked.weights_of("a")["0.unused"], torch.ones(3))


def test_personal_layers_stay_and_statistics_are_averaged() -> None:
    def built() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(40, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

    for personal in ((), ("type:BatchNorm1d",)):
        masked, plain = (run("splitfed_v1", built(), masked=each, personal=personal) for each in (True, False))
        assert largest_difference(masked, plain) < 1e-6
        equal = torch.equal(masked.weights_of("a")["1.running_mean"], masked.weights_of("b")["1.running_mean"])
        assert equal is not bool(personal)


# ---------------------------------------------------------------------- what is refused


def tampered(words: Tensor) -> Tensor:
    changed = words.clone()
    changed[:40] += 2**62
    return changed


def with_garbage(words: Tensor) -> Tensor:
    return torch.randint_like(words, 2**62)


def shortened(words: Tensor) -> Tensor:
    return words[1:]


def narrowed(words: Tensor) -> Tensor:
    return words.int()


class Forger(Unsealed):
    """A client that sends something else than its share."""

    def __init__(self, name: str, forge: Callable[[Tensor], Tensor]) -> None:
        self.agreements, self._forge = unsealed(SECRETS)[name].agreements, forge

    def seal(self, receiver: str, data: bytes | memoryview, *, context: bytes) -> bytes:
        state = ReplicaState(tensors={WORDS: self._forge(from_bytes(data).tensors[WORDS])}, counts={})
        return super().seal(receiver, to_bytes(state), context=context)


@pytest.mark.parametrize("schedule", SUMMED)
@pytest.mark.parametrize("forge", [tampered, with_garbage], ids=lambda f: f.__name__)
def test_a_sum_that_a_changed_share_has_spoiled_is_refused(schedule: str, forge: Callable[[Tensor], Tensor]) -> None:
    assert_refused(schedule, forge, "the masks did not cancel, or somebody sent something else than a share")


@pytest.mark.parametrize("forge", [shortened, narrowed], ids=lambda f: f.__name__)
def test_what_is_no_share_is_refused(forge: Callable[[Tensor], Tensor]) -> None:
    assert_refused("splitfed_v1", forge, r"a state that came does not fit: a share under masks from b is .* words")


def assert_refused(schedule: str, forge: Callable[[Tensor], Tensor], sentence: str) -> None:
    base = run(schedule)
    seals = {**unsealed(SECRETS), "b": Forger("b", forge)}
    with pytest.raises(RunError, match=sentence) as refused:
        simulate_plan(base.agreement, DATA, seals=seals)
    assert isinstance(refused.value, CutlayerError)


def test_a_plain_share_among_masked_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = run("splitfed_v1")
    monkeypatch.setattr(MaskedSum, "share", lambda own, give, state: state)
    with pytest.raises(RunError, match="a share under masks from a is"):
        simulate_plan(base.agreement, DATA)


def test_a_party_with_another_key_than_the_pinned_one_spoils_the_sum_which_is_refused() -> None:
    base = run("splitfed_v2")
    seals = {**unsealed(SECRETS), "b": unsealed(SECRETS | {"b": bytes(32)})["b"]}
    with pytest.raises(RunError, match="compare the plan's digest and its pinned keys"):
        simulate_plan(base.agreement, DATA, seals=seals)


def test_a_client_that_would_be_alone_in_a_sum_sends_nothing(seen: Seen) -> None:
    """After so many steps only one client has rows left, and the sum would be its gradient."""
    with pytest.raises(RunError, match=r"in round 1 only c has rows for a step that is summed.*training.local_steps"):
        run("parallel", local_steps=0, batch_size=4)
    assert len(seen.sent) == 6
    assert all(len(give.among) > 1 for give in seen.gives)


@pytest.mark.parametrize("buffer", [torch.inf, 1e9], ids=["a mask of infinities", "a large value"])
def test_values_that_no_fixed_point_can_carry_end_the_run_with_a_sentence(buffer: float) -> None:
    model = network()
    model[0].register_buffer("scale", torch.tensor([0.0, buffer]))
    with pytest.raises(RunError, match=r"'model.0.scale' has (values that are not finite|a value of 1e)"):
        run("splitfed_v1", model)


def test_who_has_no_keys_for_masks_is_told() -> None:
    base = run("splitfed_v1")
    with pytest.raises(RunError, match="no keys here by which masks could be agreed on"):
        simulate_plan(base.agreement, DATA, seals={name: Unsealed() for name in base.agreement.plan.terms.parties})


def test_drafting_needs_no_keys_and_a_plan_says_that_it_sums_under_masks() -> None:
    base = run("splitfed_v1").agreement
    plain = replace(base.plan.terms, secure_aggregation=False)
    assert draft(plain, network()).plan.digest != base.plan.digest
    assert all(party == PartyTerms(role=party.role) for party in base.plan.terms.parties.values())
