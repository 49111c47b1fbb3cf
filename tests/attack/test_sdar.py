"""SDAR: what an honest server learns beside the run, held to the client's features by adversaries."""

import pytest
import torch
from torch import Tensor, nn

from attack.insiders import CLASSES, CUT, drops, known, made, narrow, pins, rows, run
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


def begun(**options: float) -> tuple[Sdar, tuple[Tensor, Tensor], nn.Module]:
    """One that has begun, a mini-batch that it watches, and the top that it watches it at."""
    attack, (x, y) = Sdar(**options), rows(64, 4)  # type: ignore[arg-type]
    attack.begin(known(), x[:, :CUT], 0)
    return attack, (2 * x[:, :CUT], y), made(drops, 1)


def judged(attack: Sdar, z: Tensor, y: Tensor) -> dict[str, float]:
    """What both critics say of what they should take for real, and of the rest: means, over all rows."""
    now = attack._begun
    assert now is not None
    own = now.examples
    places = torch.arange(len(own.rows))
    y_own = own.labelled("sdar")
    with torch.no_grad():
        z_own = now.client.network(own.simulated(places))
        said = {
            "client": now.client_critic.network(z, y),
            "simulator": now.client_critic.network(z_own, y_own),
            "rows": now.decoder_critic.network(own.rows, y_own),
            "decoder": now.decoder_critic.network(now.decoder.network(z, y), y),
        }
    return {name: float(each.mean()) for name, each in said.items()}


def test_its_critics_take_the_clients_features_and_true_rows_for_real() -> None:
    attack, (z, y), top = begun(
        client_weight=0.0, decoder_weight=0.0, client_critic_lr=1e-3, decoder_critic_lr=1e-3, repeats=60
    )
    attack.watch(z, y, top)
    said = judged(attack, z, y)
    assert said["client"] > said["simulator"] + 1
    assert said["rows"] > said["decoder"] + 1


def test_the_simulator_and_the_decoder_learn_to_be_taken_for_real() -> None:
    """By critics that stay as they are, and with hardly anything else to learn."""
    attack, (z, y), top = begun(
        client_weight=1e4, decoder_weight=1e4, lr=1e-2, decoder_lr=1e-2,
        client_critic_lr=1e-12, decoder_critic_lr=1e-12, repeats=30,
    )  # fmt: skip
    before = judged(attack, z, y)
    attack.watch(z, y, top)
    after = judged(attack, z, y)
    assert after["simulator"] > before["simulator"] + 0.1
    assert after["decoder"] > before["decoder"] + 0.1
    assert after["client"] == pytest.approx(before["client"], abs=1e-6)


@pytest.mark.parametrize("part", ["client_critic", "decoder", "decoder_critic"])
def test_all_but_the_simulator_are_told_the_labels(part: str) -> None:
    attack, (z, y), _ = begun()
    network = getattr(attack._begun, part).network
    rows_there = z if part != "decoder_critic" else rows(64, 4)[0]
    with torch.no_grad():
        assert not torch.equal(network(rows_there, y), network(rows_there, (y + 1) % CLASSES))


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
