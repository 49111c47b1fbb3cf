"""Turns that are judged: the longhand loop that goes back to the newest benign state, and a client with a backdoor."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import PlanError
from cutlayer.model.rounds import TurnCheck
from cutlayer.observe.facts import Fact, Noticed, TurnedDown
from cutlayer.plan.terms import TurnCheckTerms
from equivalence.longhand import EXACT

CLASSES, BATCH, LR = 3, 8, 0.02
NAMES = tuple("abcde")
STRICT = TurnCheckTerms(window=5, slack=1.0)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()


def rows(seed: int, count: int = 24, *, bad: bool = False) -> TensorDataset:
    x = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long()
    return TensorDataset(10 * x, (y + 1) % CLASSES) if bad else TensorDataset(x, y)


def clients(*bad: str) -> dict[str, TensorDataset]:
    return {name: rows(seed, 16 + 4 * seed, bad=name in bad) for seed, name in enumerate(NAMES)}


def run(facts: list[Fact], data: dict[str, TensorDataset], check: TurnCheckTerms, **terms: Any) -> Result:
    settings: dict[str, Any] = {"cut": "1", "data": data, "optimizer": "Adam", "lr": LR, "batch_size": BATCH}
    settings |= {"shuffle": False, "held_out": 0.0, "rounds": 3, "observers": [facts.append]}
    return simulate(network(), turn_check=check, **settings | terms)


def train(data: dict[str, TensorDataset], check: TurnCheck, rounds: int) -> tuple[dict[str, nn.Module], nn.Module, int]:
    """One client after another; the server's layers, and its Adam, go back along the way that led there."""
    bottoms: dict[str, nn.Module] = {name: network()[:2] for name in data}
    own = {name: torch.optim.Adam(bottom.parameters(), lr=LR) for name, bottom in bottoms.items()}
    top, back, now = network()[2:], 0, 0
    adam = torch.optim.Adam(top.parameters(), lr=LR)
    states, parents = [(_held(top), copy.deepcopy(adam.state_dict()))], [-1]
    for name, dataset in [*data.items()] * rounds:
        x, y = dataset.tensors
        for at in range(0, len(x), BATCH):
            loss = nn.functional.cross_entropy(top(bottoms[name](x[at : at + BATCH])), y[at : at + BATCH])
            torch.autograd.backward(loss)
            for optimizer in (own[name], adam):
                optimizer.step()
                optimizer.zero_grad()
        states.append((_held(top), copy.deepcopy(adam.state_dict())))
        parents.append(now)
        recent = range(max(1, len(states) - check.window), len(states))
        good = check.benign([(states[parents[turn]][0], states[turn][0]) for turn in recent])
        now = len(states) - 1
        while now in recent and recent.index(now) not in good:
            now = parents[now]
        if now < len(states) - 1:
            back += 1
            top.load_state_dict(states[now][0])
            adam = torch.optim.Adam(top.parameters(), lr=LR)
            adam.load_state_dict(copy.deepcopy(states[now][1]))
    return bottoms, top, back


def _held(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_run_goes_back_as_the_longhand_loop_does_optimizer_and_all(micro_batches: int) -> None:
    """SafeSplit's own rule, which turns down honest turns, too."""
    facts: list[Fact] = []
    data = clients("d")
    result = run(facts, data, STRICT, micro_batches=micro_batches)
    bottoms, top, back = train(data, TurnCheck(window=5, slack=1.0), rounds=3)
    turned = [fact for fact in facts if isinstance(fact, TurnedDown)]
    assert len(turned) == back > 2
    assert back < 15 - 2
    for name, bottom in bottoms.items():
        wanted = nn.Sequential(*bottom.children(), *top.children()).state_dict()
        for key, tensor in result.model_for(name).state_dict().items():
            assert float((tensor - wanted[key]).abs().max()) <= EXACT, (name, key)


def test_each_turn_that_is_taken_back_is_told_in_words() -> None:
    facts: list[Fact] = []
    run(facts, clients("d"), STRICT)
    turned = [fact for fact in facts if isinstance(fact, TurnedDown)]
    said = [fact.sentence for fact in facts if isinstance(fact, Noticed) and "taken it back" in fact.sentence]
    assert len(said) == len(turned)
    assert all(fact.party == "server" and fact.segment == "top" for fact in turned)
    assert f"{turned[0].owner}'s turn in round {turned[0].round + 1} moved top" in said[0]


FEATURES, CLASSES_THEN = 12, 4


def backdoored(seed: int, *bad: str) -> dict[str, TensorDataset]:
    """Ten clients; half of the rows of bad ones have a trigger, and one class for a label."""
    random = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(CLASSES_THEN, FEATURES, dtype=torch.float64, generator=random)
    data = {}
    for name in "abcdefghij":
        y = torch.randint(CLASSES_THEN, (100,), generator=random)
        x = centres[y] + torch.randn(100, FEATURES, dtype=torch.float64, generator=random)
        if name in bad:
            x[::2, 0], y[::2] = 6.0, 0
        data[name] = TensorDataset(x, y)
    return data


def turned_down(seed: int, *bad: str) -> list[str]:
    """Whose turns are taken back, of ten clients' three each."""
    facts: list[Fact] = []
    torch.manual_seed(seed)
    layers = [nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES_THEN)]
    simulate(
        nn.Sequential(*layers).double(),
        cut="0",
        data=backdoored(seed, *bad),
        lr=0.1,
        batch_size=20,
        rounds=3,
        held_out=0.0,
        turn_check=TurnCheckTerms(window=10),
        observers=[facts.append],
        seed=seed,
    )
    return [fact.owner for fact in facts if isinstance(fact, TurnedDown)]


def test_a_backdoored_clients_turns_are_taken_back_and_few_others_are() -> None:
    found = [owner for seed in range(4) for owner in turned_down(seed, "j")]
    assert found.count("j") >= 9  # of 12
    assert len(found) - found.count("j") <= 8  # of 108


def test_a_window_that_is_never_full_changes_no_bit() -> None:
    """Fewer than three turns cannot outvote each other."""
    data = dict(list(clients().items())[:2])
    plain, checked = (run([], data, check, rounds=1) for check in (TurnCheckTerms(), STRICT))
    for name, tensor in plain.model_for("a").state_dict().items():
        assert torch.equal(tensor, checked.model_for("a").state_dict()[name])


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"turn_check": TurnCheckTerms(window=2)}, "training.turn_check.window = 2"),
        ({"turn_check": TurnCheckTerms(window=5, low=0.0)}, "training.turn_check.low = 0.0"),
        ({"turn_check": TurnCheckTerms(window=5, slack=0.5)}, "training.turn_check.slack = 0.5"),
        ({"turn_check": STRICT, "turn": "batch"}, "training.turn_check is for alternating and splitfed_v2"),
        ({"turn_check": STRICT, "schedule": "splitfed_v1"}, "training.turn_check is for alternating and splitfed_v2"),
        ({"turn_check": STRICT, "staleness": 1}, "training.turn_check with training.staleness"),
        ({"turn_check": STRICT, "topology": "decoupled", "upload_every": 2}, "every mini-batch must reach the segment"),
    ],
)
def test_a_check_that_could_not_work_is_refused(terms: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"cut": "1", "data": clients(), "batch_size": BATCH}
    with pytest.raises(PlanError, match=said):
        simulate(network(), **settings | terms)
