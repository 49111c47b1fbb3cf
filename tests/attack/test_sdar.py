"""SDAR: what an honest server learns beside the run, held to the client's features by adversaries."""

import pytest
import torch

from attack.insiders import CUT, known, narrow, pins, rows, run
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.sdar import Sdar
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError

STEPS, LR = 300, 1e-2


def scored(attack: Sdar, knowledge: Knowledge) -> Score:
    return attack.score(run(attack, steps=STEPS, build=narrow, build_top=pins, lr=LR, knowledge=knowledge).traffic)


def test_a_client_that_its_top_pins_down_gives_its_inputs_away() -> None:
    """R² of columns: of far more than the labels tell, which are all that chance has."""
    score = scored(Sdar(lr=LR, decoder_lr=3e-3), known(bottom=narrow))
    assert score.leaks
    assert score.low > 0.8
    assert 0.2 < score.chance < 0.5


@pytest.mark.slow
def test_the_adversary_makes_up_for_an_architecture_that_is_not_known() -> None:
    alone = Sdar(lr=LR, decoder_lr=3e-3, client_weight=0.0)
    held = Sdar(lr=LR, decoder_lr=3e-3, client_weight=0.2, client_critic_lr=1e-3)
    assert scored(held, known()).low > scored(alone, known()).high + 0.2


def test_chance_is_what_the_labels_tell_alone() -> None:
    """By hand: 1 − Σ (x − mean of its class)² / Σ (x − mean)², the mean over columns; class means of the auxiliary."""
    knowledge = known()
    assert knowledge.auxiliary is not None
    (x_own, y_own), (x, y) = knowledge.auxiliary, rows(150, 4)
    attack = Sdar()
    attack.begin(knowledge, x[:, :CUT], 0)
    score = attack.score(Traffic(steps=torch.zeros(150), activations=x[:, :CUT], inputs=x, labels=y))
    means = torch.stack([x_own[y_own == label].mean(0) for label in range(3)])
    r2 = 1 - (x - means[y]).double().square().sum(0) / (x - x.mean(0)).double().square().sum(0)
    assert score.chance == pytest.approx(float(r2.mean()), abs=1e-4)


def test_without_labels_it_neither_begins_nor_scores() -> None:
    x, _ = rows(50, 2)
    attack = Sdar()
    with pytest.raises(DataError, match="class numbers"):
        attack.begin(Knowledge(auxiliary=(x, torch.zeros(50))), x[:, :CUT], 0)
    attack.begin(known(), x[:, :CUT], 0)
    with pytest.raises(DataError, match="labels"):
        attack.score(Traffic(steps=torch.zeros(50), activations=x[:, :CUT], inputs=x))
