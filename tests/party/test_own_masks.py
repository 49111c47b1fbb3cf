"""Shares under own masks: unreadable until all their givers have opened the sum, each of whom opens one a round."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.errors import PlanError, RunError
from cutlayer.keys.masking import own_mask
from cutlayer.model.fixed import ERROR, decode
from cutlayer.model.state import ReplicaState
from cutlayer.party.agreement import draft
from cutlayer.party.masking import WORDS, MaskedSum
from cutlayer.party.openings import Opened, Openings
from cutlayer.party.replicas import Replicas
from cutlayer.party.run import Network, Saves, run
from cutlayer.party.sealed import unsealed
from cutlayer.plan.membership import NEVER
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Add, Give
from cutlayer.studies.exposure import exposures

CLIENTS = ("a", "b", "c")
SECRETS = {name: name.encode() * 32 for name in (*CLIENTS, "server", "aggregator")}
AMONG = {"a": 10.0, "b": 7.0, "c": 12.0}
WIDE = 4000


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, 2), nn.Linear(2, 3)).double()


def planned() -> Any:
    data = {name: TensorDataset(torch.zeros(4, WIDE), torch.zeros(4).long()) for name in CLIENTS}
    settings: dict[str, Any] = {"rounds": 0, "schedule": "splitfed_v1", "secure_aggregation": True}
    base = simulate(network(), cut="0", data=data, lr=0.1, batch_size=4, **settings).agreement
    return draft(replace(base.plan.terms, quorum=2), network())


AGREED = planned()
PLAN: Plan = AGREED.plan


class Scene:
    """A sum of some clients in a round of a run: their hands at masks, and the aggregator's."""

    def __init__(
        self, openings: dict[str, Openings] | None = None, *, run: str = "first", present: tuple[str, ...] = CLIENTS
    ) -> None:
        replicas, seals = Replicas(PLAN, AGREED.parts_of), unsealed(SECRETS)
        self.openings = openings or {name: Openings(None, party=name, plan=PLAN.digest) for name in CLIENTS}
        self.hands = {
            name: MaskedSum(
                PLAN,
                name,
                replicas,
                run=lambda: run,
                seals=seals[name],
                openings=self.openings.get(name),
                present=lambda: present,
            )
            for name in PLAN.terms.parties
        }
        self.aggregator = self.hands["aggregator"]

    def give(self, kind: Any, among: dict[str, float]) -> Give:
        return Give(4, kind, "weights", "aggregator", (("bottom", "a"),), 0.0, 0, among)

    def shared(self, among: dict[str, float] = AMONG) -> dict[str, Tensor]:
        """All shares come into the sum."""
        shares = {}
        for name in among:
            state = self.hands[name].share(self.give("share", among), held_by(name))
            self.aggregator.add(Add("weights", among[name], name, among=among), state)
            shares[name] = state.tensors[WORDS]
        return shares

    def key(self, name: str, among: dict[str, float] = AMONG) -> bytes:
        """What a client answers when it is called."""
        self.hands[name].called(self.aggregator.call(self.give("call", among)))
        return self.hands[name].unmask(self.give("unmask", among))

    def opened(self, among: dict[str, float] = AMONG) -> dict[str, Tensor]:
        """The sum, once all have opened it."""
        for name in among:
            self.aggregator.unmasked(name, self.key(name, among))
        return self.aggregator.result()


def held_by(name: str) -> ReplicaState:
    random = torch.Generator().manual_seed(CLIENTS.index(name))
    shapes = {"model.0.weight": (2, WIDE), "model.0.bias": (2,)}
    tensors = {key: torch.randn(shape, generator=random, dtype=torch.float64) for key, shape in shapes.items()}
    return ReplicaState(tensors=tensors, counts={})


def mean(among: dict[str, float]) -> dict[str, Tensor]:
    total = sum(among.values())
    return {key: sum(among[n] * held_by(n).tensors[key] for n in among) / total for key in held_by("a").tensors}  # type: ignore[misc]


def opened(number: int, among: dict[str, float] = AMONG) -> Opened:
    return Opened("weights", number, among, tuple(among))


def assert_close(given: dict[str, Tensor], wanted: dict[str, Tensor], allowed: float) -> None:
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert float((given[name] - tensor).abs().max()) <= allowed, name


# ---------------------------------------------------------------------- what can be read


def test_the_sum_is_the_plain_average_to_the_stated_precision() -> None:
    for among in (AMONG, {"a": 10.0, "c": 12.0}):
        scene = Scene()
        scene.shared(among)
        assert_close(scene.opened(among), mean(among), len(among) * ERROR + 1e-15)


@pytest.mark.parametrize("silent", CLIENTS)
def test_a_sum_of_which_one_key_is_missing_is_uniform_and_wrong_in_every_word(silent: str) -> None:
    scene = Scene()
    scene.shared()
    for name in CLIENTS:
        if name != silent:
            scene.aggregator.unmasked(name, scene.key(name))
    words = scene.aggregator._sum.copy()
    assert stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-4
    with pytest.raises(RunError, match="the sum under masks is no sum"):
        decode(words, scene.aggregator._like["weights"], parties=3)
    scene.aggregator.unmasked(silent, scene.key(silent))
    assert (words != scene.aggregator._sum).all()
    assert_close(scene.aggregator.result(), mean(AMONG), 3 * ERROR + 1e-15)


def test_the_keys_of_those_who_are_there_do_not_open_a_sum_that_lacks_a_share() -> None:
    """So an aggregator that calls too early learns nothing: the masks with the missing client are still on."""
    scene = Scene()
    words = sum(
        scene.hands[name].share(scene.give("share", AMONG), held_by(name)).tensors[WORDS].numpy().view(np.uint64)
        for name in ("a", "b")
    )
    assert isinstance(words, np.ndarray)
    for name in ("a", "b"):
        words = words - own_mask(scene.key(name), len(words))
    assert stats.chisquare(np.bincount(words.view(np.uint8), minlength=256)).pvalue > 1e-4


def test_own_masks_are_drawn_anew_for_each_share() -> None:
    scene, names = Scene(), ("a", "b")
    shares = [scene.hands[n].share(scene.give("share", AMONG), held_by(n)).tensors[WORDS] for n in names for _ in "12"]
    for one, other in (shares[:2], shares[2:]):
        assert (one != other).all()


# ---------------------------------------------------------------------- one sum a round


def test_the_difference_of_two_sums_of_a_round_would_be_a_share_and_so_the_second_is_not_opened() -> None:
    """The attack that a round done again without a client is; and that nobody takes part in it."""
    without = {"a": 10.0, "b": 7.0}
    scene = Scene()
    scene.shared()
    whole = scene.opened()
    naive = Scene(run="second")  # as if all had forgotten
    naive.shared(without)
    rest = naive.opened(without)
    share = {name: (29 * whole[name] - 17 * rest[name]) / 12 for name in whole}
    assert_close(share, held_by("c").tensors, 100 * ERROR)
    again = Scene(scene.openings, run="second", present=("a", "b"))
    sentence = r"a has opened the sum of a, b, c in round 1, and opens no other one of that round.* start c again"
    with pytest.raises(RunError, match=sentence):
        again.shared(without)


def test_a_sum_that_was_never_opened_by_all_may_be_made_again_without_one() -> None:
    """The lost client gave its share, and nobody was called: all the others go on."""
    scene = Scene()
    scene.shared()
    again = Scene(scene.openings, run="second")
    among = {"a": 10.0, "b": 7.0}
    again.shared(among)
    assert_close(again.opened(among), mean(among), 2 * ERROR + 1e-15)


def test_the_same_sum_may_be_opened_again() -> None:
    scene = Scene()
    scene.shared()
    first = scene.opened()
    again = Scene(scene.openings, run="second")
    again.shared()
    assert_close(again.opened(), first, 0.0)


@pytest.mark.parametrize(
    ("among", "sentence"),
    [
        ({"a": 10.0, "b": 7.0}, "start c again, without which this round cannot be done again"),
        (AMONG | {"d": 3.0}, "begin without d, which can come back in the round after"),
        (AMONG | {"c": 11.0}, "let all clients bring as many rows as then"),
    ],
)
def test_another_sum_of_an_opened_round_is_refused_with_the_mend(among: dict[str, float], sentence: str) -> None:
    openings = Openings(None, party="a", plan=PLAN.digest)
    openings.bind(opened(3))
    openings.bind(opened(3, dict(reversed(AMONG.items()))))
    openings.bind(opened(4, among))
    for act in (openings.check, openings.bind):
        with pytest.raises(RunError, match=f"opened the sum of a, b, c in round 4.*: {sentence}"):
            act(opened(3, among))


def test_who_has_to_come_back_may_have_had_no_part_in_the_sum() -> None:
    """Of four two are chosen; another lot are without one that was not chosen then."""
    openings = Openings(None, party="a", plan=PLAN.digest)
    openings.bind(Opened("weights", 3, {"a": 1.0, "c": 1.0}, ("a", "b", "c", "d")))
    with pytest.raises(RunError, match=r"opened the sum of a, c in round 4.*: start d again"):
        openings.check(Opened("weights", 3, {"a": 1.0, "b": 1.0}, ("a", "b", "c")))
    openings.check(Opened("weights", 3, {"a": 1.0, "c": 1.0}, ("a", "b", "c")))


def test_a_key_is_told_for_the_sum_that_was_called_for_alone() -> None:
    scene = Scene()
    scene.shared()
    with pytest.raises(RunError, match="aggregator sums in round 1 something else than a gave a share of"):
        scene.hands["a"].unmask(scene.give("unmask", AMONG))
    scene.hands["a"].called(scene.aggregator.call(scene.give("call", {"a": 10.0, "b": 7.0})))
    with pytest.raises(RunError, match="something else"):
        scene.hands["a"].unmask(scene.give("unmask", AMONG))
    assert scene.openings["a"].newest == (NEVER, ())


def test_what_is_no_key_or_nobodys_is_refused() -> None:
    scene = Scene()
    scene.shared()
    key = scene.key("a")
    for party, given in (("a", key[:-1]), ("a", key + b"0"), ("server", key), ("d", key)):
        with pytest.raises(RunError, match=f"what came from {party} is not the key of a mask"):
            scene.aggregator.unmasked(party, given)
    scene.aggregator.unmasked("a", key)
    with pytest.raises(RunError, match="what came from a is not the key"):
        scene.aggregator.unmasked("a", key)


def test_a_plan_says_that_who_is_lost_when_a_sum_is_open_has_to_come_back() -> None:
    (told,) = [each.protected_by for each in exposures(PLAN) if each.channel == "weights to be added up"]
    assert told == (
        "secure aggregation, each round's sum opened once: a client lost between that and the save has to come back"
    )


# ---------------------------------------------------------------------- what lasts


def test_a_client_that_was_killed_knows_what_it_has_opened(tmp_path: Path) -> None:
    openings = Openings(tmp_path / "a", party="a", plan=PLAN.digest)
    assert openings.newest == (NEVER, ())
    for number in range(4):
        openings.bind(opened(number))
    openings.close()
    again = Openings(tmp_path / "a", party="a", plan=PLAN.digest)
    assert again.newest == (3, ("a", "b", "c"))
    again.bind(opened(3))
    with pytest.raises(RunError, match="start c again"):
        again.bind(opened(2, {"a": 10.0, "b": 7.0}))


def test_it_is_on_the_disk_before_the_key_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    scene = Scene({"a": Openings(file, party="a", plan=PLAN.digest)})
    scene.shared()
    flushed: list[bytes] = []

    def flush(number: int) -> None:
        if stat.S_ISREG(os.fstat(number).st_mode):
            flushed.append(file.read_bytes())

    monkeypatch.setattr(os, "fsync", flush)
    assert len(scene.key("a")) == 32
    assert len(flushed) == 1
    assert b'"round":0' in flushed[0]


def test_no_key_leaves_where_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene({"b": Openings(tmp_path / "b", party="b", plan=PLAN.digest)})
    scene.shared()

    def full(number: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"by which b knows what it has opened, cannot be written \(no space left\)"):
        scene.key("b")


def test_a_line_that_a_crash_has_torn_says_nothing_and_another_damage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a"
    openings = Openings(file, party="a", plan=PLAN.digest)
    openings.bind(opened(0))
    openings.bind(opened(1))
    openings.close()
    whole = file.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    for kept in range(len(whole)):
        file.write_bytes(whole[:kept])
        left = Openings(file, party="a", plan=PLAN.digest)
        assert left.newest[0] == whole[:kept].count(b"\n") - 2 + (kept < len(first))
        left.bind(opened(1))
        left.close()
        again = Openings(file, party="a", plan=PLAN.digest)
        assert again.newest == (1, ("a", "b", "c"))
        again.close()
    for damaged in (b"\n" + whole, first[1:] + second, first + second[3:] + third, b"no openings\n"):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="is damaged"):
            Openings(file, party="a", plan=PLAN.digest)


def test_a_file_is_of_one_party_one_plan_and_one_process(tmp_path: Path) -> None:
    openings = Openings(tmp_path / "a", party="a", plan=PLAN.digest)
    with pytest.raises(RunError, match="another process writes"):
        Openings(tmp_path / "a", party="a", plan=PLAN.digest)
    openings.close()
    for party, plan in (("b", PLAN.digest), ("a", "another")):
        with pytest.raises(RunError, match="is a's under the plan"):
            Openings(tmp_path / "a", party=party, plan=plan)


@pytest.mark.parametrize("saves", [None, Saves(place="memory://saves")], ids=["no saves", "saves elsewhere"])
def test_a_party_that_could_forget_what_it_has_opened_does_not_start(saves: Saves | None) -> None:
    data = TensorDataset(torch.zeros(4, WIDE, dtype=torch.float64), torch.zeros(4).long())
    network = Network(
        credentials=None, connect=("127.0.0.1", 1), insecure_plaintext_on_loopback=True, seals=unsealed(SECRETS)["a"]
    )
    with pytest.raises(PlanError, match="needs a file in which a writes down which sums it has opened"):
        run(AGREED, "a", network, secret=bytes(32), data=data, saves=saves)
