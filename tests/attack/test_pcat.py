"""The pseudo-client attack: what an honest server learns beside the run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from attack.insiders import CLASSES, CUT, drops, known, made, narrow, pins, rows, run
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.examples import Examples
from cutlayer.attack.learner import task_loss
from cutlayer.attack.pcat import Pcat
from cutlayer.attack.traffic import Score

STEPS, LR = 300, 1e-2


def scored(knowledge: Knowledge) -> Score:
    attack = Pcat(lr=LR, decoder_lr=3e-3)
    return attack.score(run(attack, steps=STEPS, build=narrow, build_top=pins, lr=LR, knowledge=knowledge).traffic)


def test_a_client_that_its_top_pins_down_gives_its_inputs_away() -> None:
    """R² of columns; the mean row scores 0. It is learned by the task alone: with labels of other rows it is not."""
    knowledge = known(bottom=narrow)
    assert knowledge.auxiliary is not None
    x, y = knowledge.auxiliary
    assert y is not None
    told, mistold = scored(knowledge), scored(replace(knowledge, auxiliary=(x, y.roll(1))))
    assert told.leaks
    assert told.low > max(0.8, mistold.high)


def test_its_rows_have_the_labels_of_those_that_it_watches() -> None:
    own = Examples.known("pcat", known(), torch.device("cpu"))
    assert own.labels is not None
    labels = rows(100, 8)[1]
    places = own.alike(labels, torch.Generator().manual_seed(0))
    assert torch.equal(own.labels[places], labels)
    assert len(torch.unique(places)) > 50


def test_for_a_label_that_it_has_not_it_takes_any_row() -> None:
    x, y = rows(50, 2)
    own = Examples.known("pcat", Knowledge(auxiliary=(x, torch.zeros_like(y)), classes=CLASSES), torch.device("cpu"))
    places = own.alike(torch.full((200,), 2), torch.Generator().manual_seed(0))
    assert len(torch.unique(places)) > 40


def test_without_alignment_it_needs_no_labels_of_what_crosses() -> None:
    attack = Pcat(aligned=False)
    attack.begin(known(), torch.randn(8, CUT), 0)
    attack.watch(torch.randn(8, CUT), None, made(drops, 1))


def test_where_labels_are_numbers_there_is_nothing_to_align() -> None:
    x, _ = rows(50, 2)
    attack = Pcat()
    attack.begin(Knowledge(auxiliary=(x, x[:, :1])), torch.randn(8, CUT), 0)
    attack.watch(torch.randn(8, CUT), None, made(lambda: nn.Linear(CUT, 1), 1))


def test_more_repeats_are_more_steps() -> None:
    z, y, top = torch.randn(8, CUT), torch.zeros(8, dtype=torch.int64), made(drops, 1)
    for repeats in (1, 3):
        attack = Pcat(repeats=repeats)
        attack.begin(known(), z, 0)
        attack.watch(z, y, top)
        assert attack._begun is not None
        (first, *_) = attack._begun.client.parameters
        assert int(attack._begun.client.adam.state[first]["step"]) == repeats


@pytest.mark.parametrize(
    ("predicted", "labels", "classes", "loss"),
    [
        (torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), 2, 0.126928),
        (torch.tensor([[2.0], [-2.0]]), torch.tensor([1, 0]), 2, 0.126928),
        (torch.tensor([2.0, -2.0]), torch.tensor([[1], [0]]), 2, 0.126928),
        (torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0]), 0, 5.0),
    ],
    ids=["classes", "one logit", "flat", "numbers"],
)
def test_the_task_is_that_of_its_labels(
    predicted: torch.Tensor, labels: torch.Tensor, classes: int, loss: float
) -> None:
    assert float(task_loss(predicted, labels, classes)) == pytest.approx(loss, rel=1e-4)
