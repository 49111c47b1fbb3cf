"""Claims about a party's saves: what is taken up is what was, bit for bit, and goes on as the undisturbed run does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import RunError
from cutlayer.model.state import ReplicaState
from cutlayer.observe.facts import Fact, Noticed, Progressed, Resumed, Saved
from cutlayer.observe.meter import Meter
from cutlayer.party.agreement import Agreement
from cutlayer.party.checkpoint import Checkpoints
from cutlayer.party.party import Party
from cutlayer.party.replicas import Kept, Replicas
from cutlayer.party.run import Network, Saves, make_loader, run
from cutlayer.party.saver import Saver
from cutlayer.party.sealed import Unsealed
from cutlayer.party.setting import Setting
from cutlayer.plan.membership import ALL, NEVER, Membership, Start
from cutlayer.plan.terms import CodecTerms, Method, SaveTerms
from cutlayer.protocol.events import Restore, Store
from cutlayer.protocol.resuming import Standing
from cutlayer.simulation.runs import _drive, _secret

ROWS = {"a": 13, "b": 18, "c": 9}
SERVER = "server"


def data(**rows: int) -> dict[str, TensorDataset]:
    made = {}
    for seed, (name, count) in enumerate((ROWS | rows).items()):
        random = torch.Generator().manual_seed(seed)
        x, y = torch.randn(count, 6, generator=random), torch.randint(0, 3, (count,), generator=random)
        made[name] = TensorDataset(x, y)
    return made


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, 30), nn.BatchNorm1d(30), nn.Dropout(0.2), nn.ReLU()),
        *(nn.Linear(30, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 3)),
    )


BY_STEP = {"name": "ExponentialLR", "gamma": 0.9, "every": "step"}
TOP_K = (Method(name="topk", options={"share": 0.2}),)
RUNS: dict[str, dict[str, Any]] = {
    "v1, optimizers kept, on disk": {"schedule": "splitfed_v1", "averaged_optimizer": "keep", "max_live": 1},
    "v1, optimizers averaged": {"schedule": "splitfed_v1", "averaged_optimizer": "average", "clients_per_round": 2},
    "v1, anchored, on disk": {"schedule": "splitfed_v1", "proximal": 0.3, "max_live": 1},
    "v2, personal, rates by step": {
        "schedule": "splitfed_v2",
        "personal": ["type:BatchNorm1d"],
        "lr_schedule": BY_STEP,
    },
    "v3, anchored, personal": {"schedule": "splitfed_v3", "proximal": 0.1, "averaged_optimizer": "keep"},
    "alternating, rates by step": {"schedule": "alternating", "turn": "batch", "lr_schedule": BY_STEP},
    "relay": {"schedule": "relay", "lr_schedule": BY_STEP},
    "feedback": {
        "schedule": "alternating",
        "codec": CodecTerms(forward=TOP_K, backward=TOP_K, forward_feedback="sample", backward_feedback="channel"),
    },
    "stale": {"schedule": "alternating", "staleness": 2},
}


@cache
def agreed(name: str) -> Agreement:
    """What the parties of a run have agreed on: the plan of a simulation, with a save after every other step."""
    terms: dict[str, Any] = {"optimizer": "adam", "lr": 0.01, "batch_size": 4, "rounds": 0, "seed": 3, "cut": "3"}
    result: Result = simulate(model(), data=data(), **terms | RUNS[name])
    plan = result.agreement.plan
    training = replace(plan.terms.training, rounds=2)
    terms_of = replace(plan.terms, training=training, saves=SaveTerms(every_steps=2))
    return replace(result.agreement, plan=replace(plan, terms=terms_of))


class Killed(BaseException):
    """All processes were killed."""


@dataclass
class Crew:
    """The parties of a run, each with replicas and saves of its own."""

    agreement: Agreement
    place: Path
    rows: dict[str, int] = field(default_factory=dict)
    parties: dict[str, Party] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)

    def run(self, until: Callable[[Fact], bool] = lambda _: False) -> "Crew":
        """Go on from what there is, until the end, or a fact at which all are killed."""

        def watch(fact: Fact) -> None:
            self.facts.append(fact)
            if until(fact):
                raise Killed

        plan, brought = self.agreement.plan, data(**self.rows)
        self.meters = {name: Meter() for name in plan.terms.parties}
        savers = {name: self.saver(name) for name in plan.terms.parties}
        self.parties = {
            name: Party(
                plan,
                name,
                replicas=Replicas(plan, self.agreement.parts_of),
                secret=_secret(plan.terms.seed, name),
                loader=make_loader(self.agreement, name, brought.get(name), None, _secret(plan.terms.seed, name)),
                observers=(meter, watch),
                seals=Unsealed(),
                setting=Setting(saver=savers[name], standing=savers[name].standing(again=False)),
            )
            for name, meter in self.meters.items()
        }
        try:
            with torch.random.fork_rng(devices=[]):
                _drive(self.parties, None)
        finally:
            for saver in savers.values():
                saver.close()
        return self

    def saver(self, name: str) -> Saver:
        return Saver(Checkpoints(self.place / name, plan=self.agreement.plan.digest, party=name))

    def killed(self, when: Callable[[Fact], bool]) -> "Crew":
        with pytest.raises(Killed):
            self.run(when)
        return self

    def history(self, name: str) -> list[Any]:
        return self.meters[name].history


@cache
def undisturbed(name: str, place: Path) -> Crew:
    return Crew(agreed(name), place).run()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


def whole(name: str, shared: Path) -> Crew:
    return undisturbed(name, shared / name.replace(" ", "-"))


def states(replicas: Replicas) -> dict[Any, ReplicaState]:
    return {key: replicas.state(key).copied() for key in replicas.known}


def assert_same_states(found: dict[Any, ReplicaState], wanted: dict[Any, ReplicaState]) -> None:
    assert found.keys() == wanted.keys()
    for key, state in found.items():
        assert state.counts == wanted[key].counts, key
        assert state.tensors.keys() == wanted[key].tensors.keys(), key
        for name, tensor in state.tensors.items():
            assert torch.equal(tensor, wanted[key].tensors[name]), f"{name} of {key}"


def assert_ended_alike(crew: Crew, other: Crew) -> None:
    for name, party in crew.parties.items():
        assert party.over
        assert party.error is None
        assert crew.history(name) == other.history(name)
        assert_same_states(states(party.replicas), states(other.parties[name].replicas))


def nth(kind: type[Fact], count: int) -> Callable[[Fact], bool]:
    """The so-manyth fact of a kind."""
    left = [count]

    def is_it(fact: Fact) -> bool:
        left[0] -= isinstance(fact, kind)
        return isinstance(fact, kind) and left[0] == 0

    return is_it


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_taken_up_twice_a_run_ends_with_the_bits_and_the_scores_of_the_undisturbed(
    name: str, tmp_path: Path, shared: Path
) -> None:
    steps = sum(isinstance(fact, Progressed) for fact in whole(name, shared).facts)
    crew = Crew(agreed(name), tmp_path)
    for count in (steps // 3, steps // 2 - 2):
        crew.killed(nth(Progressed, count))
    crew.facts.clear()
    crew.run()
    (save,) = {fact.save for fact in crew.facts if isinstance(fact, Resumed)}
    assert save != NEVER
    assert_ended_alike(crew, whole(name, shared))


@pytest.mark.parametrize("name", ["v1, optimizers kept, on disk", "v1, anchored, on disk"])
def test_a_save_in_the_midst_of_the_first_clients_round_is_gone_on_from(
    name: str, tmp_path: Path, shared: Path
) -> None:
    crew = Crew(agreed(name), tmp_path).killed(lambda fact: isinstance(fact, Saved) and fact.party == SERVER)
    (first,) = crew.saver(SERVER).standing(again=True).committed
    assert crew.saver(SERVER).standing(again=True).rounds == {}, "the round is not over"
    crew.facts.clear()
    crew.run()
    assert {fact.save for fact in crew.facts if isinstance(fact, Resumed)} == {first}
    assert_ended_alike(crew, whole(name, shared))


# ---------------------------------------------------------------------- what is kept


def restored(crew: Crew, name: str, save: int) -> Replicas:
    replicas = Replicas(crew.agreement.plan, crew.agreement.parts_of)
    saver = crew.saver(name)
    log = saver.standing(again=True).log
    saver.restore(Restore(Start(log, save), save, crew.parties[SERVER].session.members), replicas, name)
    saver.close()
    return replicas


@pytest.mark.parametrize("name", RUNS)
def test_what_is_restored_is_what_was_kept_and_would_be_kept_again(name: str, shared: Path) -> None:
    """All replicas, at work or at rest, on disk or not: states, counts, and what each average left."""
    crew = whole(name, shared)
    for party, there in crew.parties.items():
        last = max(crew.saver(party).standing(again=True).committed)
        replicas = restored(crew, party, last)
        assert_same_states(states(replicas), states(there.replicas))
        assert_same_kept(replicas.kept(), there.replicas.kept())


def assert_same_kept(found: Kept, wanted: Kept) -> None:
    assert found.averages == wanted.averages
    assert found.bases.keys() == wanted.bases.keys()
    assert list(found.rests) == list(wanted.rests)


@pytest.mark.parametrize("name", ["v1, optimizers kept, on disk", "alternating, rates by step"])
def test_what_was_kept_does_not_change_when_training_goes_on(name: str, tmp_path: Path) -> None:
    """A save has copies of what is at work at that moment, however long the writing takes."""
    crew = Crew(agreed(name), tmp_path / "run").killed(nth(Progressed, 5))
    replicas, members = crew.parties[SERVER].replicas, crew.parties[SERVER].session.members
    before = states(replicas)
    saver = Saver(Checkpoints(tmp_path / "other", plan=crew.agreement.plan.digest, party=SERVER))
    saver.restore(Restore(Start(), NEVER, members), Replicas(crew.agreement.plan, crew.agreement.parts_of), SERVER)
    written: list[Any] = []
    goes_on = Event()
    saver._writer.submit(goes_on.wait, 30)
    saver.store(Store(4, 0, ends_round=False), replicas, lambda *told: written.append(told))
    assert any(_spoilt(replicas, key) for key in before)
    assert not written
    goes_on.set()
    saver.wait()
    assert written == [(4, None)]
    taken_up = Replicas(crew.agreement.plan, crew.agreement.parts_of)
    saver.restore(Restore(Start(), 4, members), taken_up, SERVER)
    saver.close()
    assert_same_states(states(taken_up), before)


def _spoilt(replicas: Replicas, key: tuple[str, str]) -> bool:
    """Change all tensors of a replica at work, as its next step would."""
    at_work = key in replicas._live
    for tensor in replicas.state(key).tensors.values() if at_work else ():
        tensor.detach().add_(1)
    return at_work


def test_other_rows_than_before_are_refused_with_what_to_do(tmp_path: Path) -> None:
    crew = Crew(agreed("relay"), tmp_path).killed(nth(Saved, 5))
    crew.rows = {"b": 19}
    with pytest.raises(
        RunError, match=r"b had 14 rows and 4 held out when save \d+ was made, and brings 15 rows"
    ) as caught:
        crew.run()
    assert "bring the same ones, or begin the run anew" in str(caught.value)


def test_a_save_made_among_other_members_is_refused(shared: Path) -> None:
    crew = whole("relay", shared)
    last = max(crew.saver("a").standing(again=True).committed)
    log = (*ALL, Membership(after=0, round=1, absent=("c",)))
    saver = crew.saver("a")
    replicas = Replicas(crew.agreement.plan, crew.agreement.parts_of)
    with pytest.raises(RunError, match="was made among other members: begin the run anew"):
        saver.restore(Restore(Start(log, last), last, crew.parties["a"].session.members), replicas, "a")
    saver.close()


def test_a_run_that_is_over_is_known_to_be_and_forgotten_only_when_that_is_asked_for(tmp_path: Path) -> None:
    crew = Crew(agreed("alternating, rates by step"), tmp_path).run()
    for name in crew.parties:
        saver = crew.saver(name)
        assert saver.finished
        saver.clear()
        assert not saver.finished
        assert saver.standing(again=False) == Standing(lasting=True)
        saver.close()


def test_each_party_keeps_its_own_scores_only_once(tmp_path: Path, shared: Path) -> None:
    """Those of turns after the save are told anew, and count once."""
    crew = Crew(agreed("relay"), tmp_path).killed(nth(Saved, 4)).run()
    for name in crew.parties:
        entries: Sequence[Any] = crew.history(name)
        assert entries == whole("relay", shared).history(name)
        assert len({(each.turn, each.owner) for each in entries}) == len(entries)


def test_a_person_hears_which_saves_were_refused_and_a_finished_run_gives_its_results(tmp_path: Path) -> None:
    crew = Crew(agreed("alternating, rates by step"), tmp_path).run()
    older = sorted((tmp_path / "server").glob("save-*.json"))[0]
    older.write_bytes(older.read_bytes()[:-9])
    facts: list[Fact] = []
    outcome = run(
        crew.agreement,
        "server",
        Network(credentials=None, insecure_plaintext_on_loopback=True),
        secret=_secret(crew.agreement.plan.terms.seed, "server"),
        observers=(facts.append,),
        saves=Saves(place=tmp_path / "server"),
    )
    told = [fact.sentence for fact in facts if isinstance(fact, Noticed)]
    assert [older.name in sentence and "refused" in sentence for sentence in told] == [True, False]
    assert told[1] == "server's part of this run is over already"
    assert outcome.meter.history == crew.history("server")
    wanted = crew.parties["server"].weights()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in outcome.state().items())
