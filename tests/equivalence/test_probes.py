"""Runs with probes against the longhand loop: on wrong labels the server learns, and the labels' owner does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import PlanError, RunError
from cutlayer.observe.facts import Alarmed, Crossed, Fact, Leaked, Noticed
from cutlayer.observe.tap import Seen
from cutlayer.party.probing import wrong
from cutlayer.plan.terms import DefenceTerms, Method, ProbeTerms
from equivalence.longhand import EXACT

ROWS, BATCH, ROUNDS, LR, CLASSES = 40, 8, 4, 0.05, 3
STEPS = ROUNDS * ROWS // BATCH
CUTS = {"vanilla": (1,), "u_shaped": (1, 3)}
SOME = ProbeTerms(share=0.4, after=3)
DEFENDED = DefenceTerms(edge="y->top", forward=(Method(name="label_dp", options={"epsilon": 1.0}),))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def rows() -> TensorDataset:
    x = torch.randn(ROWS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


class Sent:
    """The rows that party "a" sends in training with the labels that it takes for theirs, and how often which step."""

    def __init__(self) -> None:
        self.steps: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = {}

    def __call__(self, seen: Seen) -> None:
        if seen.party == "a" and seen.sent and seen.inputs and seen.ticket.purpose == "train":
            assert seen.labels is not None
            assert seen.places is not None
            part = (seen.inputs[0].clone(), seen.labels.clone(), seen.places.clone())
            self.steps.setdefault((seen.ticket.turn, seen.ticket.step), []).append(part)

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in self.steps.values()]  # type: ignore[misc]


def run(sent: Sent | None = None, topology: str = "vanilla", **terms: Any) -> Result:
    settings: dict[str, Any] = {"cut": CUTS.get(topology), "topology": topology, "data": {"a": rows()}}
    settings |= {"optimizer": "Adam", "lr": LR, "batch_size": BATCH, "rounds": ROUNDS, "held_out": 0.0}
    return simulate(network(), **settings | {"taps": (sent,) if sent else ()} | terms)


def train(batches: list[tuple[Tensor, Tensor, Tensor]], own: Callable[[str], bool]) -> nn.Sequential:
    """The uncut model on these rows and labels. Layers that are `own` step on their true labels only."""
    model, true = network(), rows().tensors[1]
    named = list(model.named_parameters())
    mine = torch.optim.Adam([p for name, p in named if own(name)], lr=LR)
    theirs = torch.optim.Adam([p for name, p in named if not own(name)], lr=LR)
    for x, y, places in batches:
        model.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        theirs.step()
        if torch.equal(y, true[places]):
            mine.step()
    return model


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("topology", CUTS)
def test_on_a_probe_others_step_and_its_owner_does_not(topology: str, parts: int) -> None:
    sent, ends = Sent(), CUTS[topology]
    result = run(sent, topology, probe=SOME, micro_batches=parts)
    batches, true = sent.batches(), rows().tensors[1]
    assert len(batches) == STEPS
    fakes = [not torch.equal(y, true[places]) for _, y, places in batches]
    assert not any(fakes[: SOME.after])
    assert 3 <= sum(fakes) <= STEPS - 3
    for fake, (_, y, places) in zip(fakes, batches, strict=True):
        assert not fake or not bool((y == true[places]).any())
    wanted = train(batches, lambda name: int(name[0]) < ends[0] + 1 or (len(ends) > 1 and int(name[0]) > ends[1]))
    for name, tensor in result.model_for("a").state_dict().items():
        assert float((tensor - wanted.state_dict()[name]).abs().max()) <= EXACT, name


def test_without_probes_no_bit_changes() -> None:
    plain, none = run(), run(probe=ProbeTerms(share=0.5, after=STEPS))
    for name, tensor in plain.model_for("a").state_dict().items():
        assert torch.equal(tensor, none.model_for("a").state_dict()[name])


def crossings(**terms: Any) -> list[tuple[object, ...]]:
    """Everything that the server can see of messages but the numbers in them."""
    seen: list[tuple[object, ...]] = []

    def see(fact: Fact) -> None:
        if isinstance(fact, Crossed) and fact.party == "server":
            sizes = fact.rows, fact.shapes, fact.payload_bytes, fact.frame_bytes
            seen.append((fact.edge, fact.way, fact.sent, fact.purpose, fact.ticket, fact.codec, *sizes))

    run(observers=[see], **terms)
    return seen


def test_to_others_the_tickets_of_probes_look_like_all_others() -> None:
    assert crossings(probe=SOME) == crossings()


def test_which_mini_batches_are_probes_is_its_owners_secret() -> None:
    """No other party's secret changes it; one's own does."""
    secrets = {name: bytes([number]) * 32 for number, name in enumerate(("a", "server"))}
    drawn = []
    for changed in ({}, {"server": b"x" * 32}, {"a": b"y" * 32}):
        sent, true = Sent(), rows().tensors[1]
        run(sent, probe=SOME, secrets=secrets | changed, shuffle=False)
        drawn.append([torch.equal(y, true[places]) for _, y, places in sent.batches()])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


# ---------------------------------------------------------------------- what they find


def told(**terms: Any) -> tuple[list[Fact], Result]:
    facts: list[Fact] = []
    probe = ProbeTerms(share=0.3, after=60)
    result = run(observers=[facts.append], rounds=40, probe=probe, **terms)
    return [fact for fact in facts if isinstance(fact, Alarmed | Leaked | Noticed)], result


def hijacked(seen: Seen, module: nn.Module) -> Tensor | None:
    """A server that pulls all activations to one point, whatever the labels are."""
    return seen.inputs[0] - 0.5 if seen.way == "backward" else None


def test_an_honest_server_is_not_accused() -> None:
    facts, _ = told()
    scores = [fact.value for fact in facts if isinstance(fact, Leaked)]
    assert len(scores) > 20
    assert min(scores[-10:]) > 0.9
    assert not [fact for fact in facts if isinstance(fact, Alarmed)]


def test_a_server_that_never_looks_at_labels_is_found() -> None:
    facts, _ = told(hijacks={"server": hijacked})
    (alarm,) = [fact for fact in facts if isinstance(fact, Alarmed)]
    (notice,) = [fact for fact in facts if isinstance(fact, Noticed)]
    assert alarm.statistic == "probe"
    assert alarm.edge == "bottom->top"
    assert alarm.false_alarms is None
    assert notice.sentence == alarm.sentence


def test_an_alarm_ends_the_run_where_the_plan_says_so() -> None:
    with pytest.raises(RunError, match="the same for wrong labels"):
        told(hijacks={"server": hijacked}, on_alarm="end")


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (torch.arange(60) % 4, 4),
        ((torch.arange(60) % 4).reshape(20, 3), 4),
        ((torch.arange(60) % 4).to(torch.int32), 4),
        (torch.arange(60) % 2, 2),
        ((torch.arange(60) % 2).double()[:, None], 0),
        (torch.arange(60) % 2 == 0, 0),
        (torch.arange(60).double(), 0),
        (torch.arange(60).double()[:, None], 0),
    ],
)
def test_every_wrong_label_is_another_one_of_the_same_kind(labels: Tensor, classes: int) -> None:
    found = wrong(labels, classes, torch.Generator().manual_seed(1))
    assert (found.dtype, found.shape) == (labels.dtype, labels.shape)
    assert not bool((found == labels).any())
    assert set(found.flatten().tolist()) <= set(labels.flatten().tolist())


def test_an_ignored_label_stays() -> None:
    labels = torch.tensor([0, -100, 2, -100])
    found = wrong(labels, 3, torch.Generator().manual_seed(1))
    assert (found == labels).tolist() == [False, True, False, True]


def test_other_classes_are_equally_likely() -> None:
    found = wrong(torch.zeros(3000, dtype=torch.int64), 4, torch.Generator().manual_seed(1)).bincount(minlength=4)
    assert found[0] == 0
    assert all(900 < count < 1100 for count in found[1:].tolist())  # 4 standard deviations


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"probe": ProbeTerms(share=0.9)}, "probe.share = 0.9"),
        ({"probe": ProbeTerms(share=0.1, after=-1)}, "probe.after = -1"),
        ({"probe": SOME, "staleness": 1}, "probe with training.staleness"),
        ({"probe": SOME, "topology": "decoupled"}, "no gradient comes back"),
        ({"probe": SOME, "schedule": "parallel"}, "probe means nothing under parallel"),
        ({"probe": SOME, "defence": DEFENDED}, "probe with a defence of y->top"),
    ],
)
def test_probes_that_could_not_work_or_would_tell_labels_are_refused(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        run(**terms)
