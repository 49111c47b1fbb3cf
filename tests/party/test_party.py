"""A party on its own: what its user's code may do wrong, what observers hear, and a loop of threads around it."""

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import ChannelClosed, PeerStopped, RemoteProtocolError, RunError
from cutlayer.observe.facts import Crossed, Fact, Progressed, Scored, Spent, Stop
from cutlayer.observe.meter import Meter
from cutlayer.party.loop import Loop
from cutlayer.party.party import Party
from cutlayer.party.replicas import Replicas
from cutlayer.party.run import make_loader
from cutlayer.plan.limits import Limits
from cutlayer.transport.memory import pair

SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(["a", "b", "server"])}


def rows(count: int, seed: int = 0) -> TensorDataset:
    random = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 4, generator=random), torch.randint(0, 3, (count,), generator=random))


def mlp(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.2), *extra, nn.Linear(5, 3))


def run(model: nn.Module, **terms: Any) -> Result:
    settings: dict[str, Any] = {
        "cut": "1",
        "data": {"a": rows(10), "b": rows(7, 1)},
        "lr": 0.1,
        "batch_size": 4,
        "rounds": 2,
        "secrets": SECRETS,
    }
    return simulate(model, **settings | terms)


class Fails(nn.Module):
    """Raises in its `at`-th forward of training."""

    def __init__(self, at: int, *, backward: bool = False) -> None:
        super().__init__()
        self.calls, self.at, self.backward = 0, at, backward

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        if self.calls <= self.at:
            return x
        if not self.backward:
            raise ValueError("no such luck")
        out = x * 1
        out.register_hook(self._fail)  # type: ignore[no-untyped-call]
        return out

    @staticmethod
    def _fail(_: Tensor) -> Tensor:
        raise ValueError("no such luck")


# ---------------------------------------------------------------------- the user's code


@pytest.mark.parametrize("cut", ["1", "2"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_model_that_raises_ends_the_run_with_segment_party_and_ticket(cut: str, backward: bool) -> None:
    with pytest.raises(RunError) as caught:
        run(mlp(Fails(2, backward=backward)), cut=cut, held_out=0.0)
    where, holder = ("top", "server") if cut == "1" else ("bottom", "a")
    told = str(caught.value)
    assert not isinstance(caught.value, PeerStopped)
    for words in (where, holder, "turn 0, a, step 2.0 (train)", "ValueError: no such luck"):
        assert words in told
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_optimizer_that_raises_in_its_step_ends_the_run_with_segment_and_party() -> None:
    with pytest.raises(RunError, match=r"(top of server|bottom of a) failed: .*capturable"):
        run(mlp(), optimizer={"name": "Adam", "capturable": True})


# ---------------------------------------------------------------------- observers


def test_observers_hear_every_crossing_step_and_score() -> None:
    facts: list[Fact] = []
    result = run(mlp(), observers=[facts.append], turn="batch")
    scored = [fact for fact in facts if isinstance(fact, Scored)]
    assert len({(fact.turn, fact.owner) for fact in scored}) == len(result.history)
    steps = [fact for fact in facts if isinstance(fact, Progressed) and fact.owner == "a" and fact.party == "server"]
    assert [fact.done for fact in steps] == list(range(1, steps[0].total + 1))
    sent = sum(fact.frame_bytes for fact in facts if isinstance(fact, Crossed) and fact.sent)
    received = sum(fact.frame_bytes for fact in facts if isinstance(fact, Crossed) and not fact.sent)
    assert sent == received
    assert {fact.on for fact in facts if isinstance(fact, Spent)} == {"load", "forward", "backward", "step", "wire"}


def test_an_observer_that_returns_stop_ends_the_run_before_the_next_release() -> None:
    sent: list[Crossed] = []

    def stop_after_three(fact: Fact) -> Stop | None:
        if isinstance(fact, Crossed) and fact.party == "a" and fact.sent and fact.carries is None:
            sent.append(fact)
        return Stop(reason="enough was seen") if len(sent) == 3 else None

    with pytest.raises(RunError, match="enough was seen"):
        run(mlp(), observers=[stop_after_three])
    assert len(sent) == 3


def test_replicas_are_copies_of_the_agreed_segments() -> None:
    result = run(mlp())
    initial = mlp().state_dict()
    for part in result.agreement.parts.values():
        for name, value in part.state_dict().items():
            assert torch.equal(value, initial[name])
    weights = [p for party in result.parties.values() for s in party.segments.values() for p in s.replica.parameters]
    assert len({parameter.data_ptr() for parameter in weights}) == len(weights)


# ---------------------------------------------------------------------- what comes from peers


class Becomes(nn.Module):
    """Makes of the rows of the second batch of training this value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * self.value if self.training and self.calls == 2 else x


@pytest.mark.parametrize(
    ("value", "what"), [(math.nan, "NaN or infinite values"), (math.inf, "NaN or"), (1e9, "a root")]
)
def test_a_tensor_that_is_no_sound_number_is_refused_by_the_party_that_was_sent_it(value: float, what: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        run(mlp(Becomes(value)), cut="2", held_out=0.0)
    assert (caught.value.rule, caught.value.peer) == ("not-finite", "a")
    assert caught.value.detail.startswith(what)
    assert "on bottom->top for turn 0, a, step 1.0 (train) (limits.tensor_rms = 1e+06)" in caught.value.detail


# ---------------------------------------------------------------------- a loop of threads


def looped(base: Result, data: dict[str, TensorDataset], limits: Limits) -> tuple[dict[str, Party], dict[str, Meter]]:
    """The same parties, each in a thread of its own, over memory."""
    names = list(base.parties)
    meters = {name: Meter() for name in names}
    parties = {
        name: Party(
            base.agreement.plan,
            name,
            replicas=Replicas(base.agreement.plan, base.agreement.parts_of),
            secret=SECRETS[name],
            loader=make_loader(base.agreement, name, data.get(name), None, SECRETS[name]),
            observers=(meters[name],),
        )
        for name in names
    }
    ends = {name: pair(name, "server", limits) for name in names if name != "server"}
    channels = {"server": [end for _, end in ends.values()]} | {name: [end] for name, (end, _) in ends.items()}
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            Loop(parties[name].plan, name).run(parties[name], channels[name])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return parties, meters


@pytest.mark.parametrize(("topology", "cut"), [("vanilla", "1"), ("u_shaped", ("0", "1"))])
def test_parties_in_threads_of_their_own_give_the_scores_of_the_simulation(topology: str, cut: Any) -> None:
    """Without dropout: threads share torch's random stream, processes do not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    data = {"a": rows(10), "b": rows(7, 1)}
    base = run(model, topology=topology, cut=cut, turn="batch")
    parties, meters = looped(base, data, base.agreement.plan.terms.limits)
    for name, party in parties.items():
        assert party.over
        assert party.error is None
        found, wanted = ({(s.turn, s.owner): s for s in m[name].history} for m in (meters, base.meters))
        assert found == wanted
        for replica, segment in party.segments.items():
            for key, value in segment.replica.module.state_dict().items():
                assert torch.equal(value, base.parties[name].segments[replica].replica.module.state_dict()[key])


def test_a_party_that_is_left_alone_says_who_is_gone() -> None:
    base = run(mlp())
    party = Party(
        base.agreement.plan,
        "a",
        replicas=Replicas(base.agreement.plan, base.agreement.parts_of),
        secret=SECRETS["a"],
        loader=make_loader(base.agreement, "a", rows(10), None, SECRETS["a"]),
    )
    mine, theirs = pair("a", "server", base.agreement.plan.terms.limits)
    theirs.close()
    with pytest.raises(ChannelClosed, match="server is lost"):
        Loop(party.plan, "a").run(party, [mine])
    assert party.over
