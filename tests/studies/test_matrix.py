"""Recordings of runs, attacks on them, and what a plan says of exposure."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.attack.registry import build
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError, PlanError
from cutlayer.party.agreement import draft
from cutlayer.plan.methods import methods_from
from cutlayer.plan.terms import (
    BudgetTerms,
    DefenceTerms,
    InputTerms,
    Method,
    ModelTerms,
    PartyTerms,
    ProbeTerms,
    Terms,
    Training,
    TurnCheckTerms,
)
from cutlayer.studies.exposure import exposures, warnings, watches
from cutlayer.studies.leakage import draw
from cutlayer.studies.matrix import NONE, Case, Cell, Question, defences_from, leak_of, matrix
from cutlayer.studies.recording import Recorder

ROWS = 300


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


def rows(seed: int = 1) -> TensorDataset:
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long())


def terms(**more: Any) -> Terms:
    return Terms(
        topology="vanilla",
        schedule="alternating",
        model=ModelTerms(cut=("1",)),
        input=InputTerms(shape=(6,)),
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=Method(name="Adam", options={"lr": 0.01}),
            batch_size=30,
            rounds=3,
        ),
        parties={"hospital-a": PartyTerms(role="client"), "lab": PartyTerms(role="server")},
        **more,
    )


def test_a_recording_is_what_crossed_beside_the_rows_that_it_was_made_of() -> None:
    recorder, data = Recorder(), rows()
    simulate(network(), cut="1", data={"a": data}, lr=0.0, batch_size=30, rounds=1, taps=(recorder,))
    traffic = recorder.traffic["a", "bottom->top"]
    x, y = data.tensors
    assert len(traffic) == ROWS * 0.8
    assert traffic.rows is not None
    assert traffic.inputs is not None
    assert traffic.labels is not None
    assert torch.equal(traffic.inputs, x[traffic.rows])
    assert torch.equal(traffic.labels, y[traffic.rows])
    torch.testing.assert_close(traffic.activations, network()[:2](x[traffic.rows]).detach())
    aside = recorder.aside("a")
    assert aside is not None
    assert len(aside[0]) == ROWS * 0.2


def test_a_recording_comes_back_from_its_file_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    recorder = Recorder(most=60)
    simulate(network(), cut="1", data={"a": rows()}, batch_size=30, rounds=1, taps=(recorder,))
    paths = {path.name: path for path in recorder.save(tmp_path / "kept")}
    path = paths["a-on-bottom-to-top.safetensors"]
    assert path.stat().st_mode & 0o077 == 0
    kept, known = (each.activations for each in (Traffic.load(path), recorder.traffic["a", "bottom->top"]))
    assert kept is not None
    assert known is not None
    assert torch.equal(kept, known)
    assert len(Traffic.load(path)) == 60
    path.write_bytes(b"no recording")
    with pytest.raises(DataError, match="record the run anew"):
        Traffic.load(path)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    on_traffic, insiders = build(methods_from("decoder(epochs=40)+label_leak+pcat"))
    question = Question(
        terms=terms(), model=network(), data={"hospital-a": rows()}, on_traffic=on_traffic, insiders=insiders
    )
    cases = [Case(cut=("1",), defence=text) for text in (NONE, "gaussian(clip=1,sigma=5)+max_norm()")]
    return [*matrix(question, cases, lambda sentence: None)]


def of(cells: list[Cell], attack: str, defence: str) -> Cell:
    return next(c for c in cells if c.found.attack.startswith(attack) and c.case.defence.startswith(defence))


def test_a_defence_makes_an_attack_do_worse_and_has_its_price(cells: list[Cell]) -> None:
    plain, noisy = (of(cells, "decoder", text).found.score for text in (NONE, "gaussian"))
    assert plain is not None
    assert noisy is not None
    assert plain.leaks
    assert leak_of(plain) > 0.6
    assert leak_of(noisy) < 0.2
    assert (of(cells, "decoder", NONE).accuracy or 0) > (of(cells, "decoder", "gaussian").accuracy or 0)


def test_an_insider_takes_part_in_a_run_of_its_own(cells: list[Cell]) -> None:
    score = of(cells, "pcat", NONE).found.score
    assert score is not None
    assert score.rows


def test_what_cannot_be_tried_is_said_with_the_reason(cells: list[Cell]) -> None:
    assert any(c.found.score is None and "it needs activations" in c.found.reason for c in cells)


def test_leakage_against_accuracy_is_drawn(cells: list[Cell], tmp_path: Path) -> None:
    draw(cells, tmp_path / "leak.png")
    assert (tmp_path / "leak.png").read_bytes().startswith(b"\x89PNG")


def test_defences_go_where_they_belong() -> None:
    plan = draft(terms(), network()).plan
    found = defences_from("gaussian(clip=1,sigma=1)+max_norm()+label_dp(epsilon=2)", plan)
    assert [(each.edge, len(each.forward), len(each.backward)) for each in found] == [("", 1, 1), ("y->top", 1, 0)]
    (learning,) = defences_from("dp_sgd(clip=1,noise_multiplier=1)", plan)
    assert learning.segment == "bottom"
    with pytest.raises(PlanError, match="is no defence"):
        defences_from("gausian(clip=1)", plan)


# ---------------------------------------------------------------------- what a plan says of exposure


def test_an_undefended_shallow_cut_is_warned_of_and_a_defended_one_is_not() -> None:
    assert any("SSIM" in sentence for sentence in warnings(draft(terms(), network()).plan))
    noisy = DefenceTerms(forward=(Method(name="gaussian", options={"clip": 1.0, "sigma": 1.0}),))
    assert not [*warnings(draft(terms(defence=(noisy,)), network()).plan)]


def test_each_channel_is_said_with_what_protects_it() -> None:
    noisy = DefenceTerms(forward=(Method(name="gaussian", options={"clip": 1.0, "sigma": 1.0}),))
    budget = BudgetTerms(party="hospital-a", epsilon=8.0)
    plan = draft(terms(defence=(noisy,), budget=(budget,)), network()).plan
    by_channel = {each.channel: each for each in exposures(plan)}
    activations = by_channel["activations (bottom->top)"]
    assert activations.bounded
    assert "sensitivity 2" in activations.protected_by
    assert "every release of any row counts" in activations.protected_by
    assert not by_channel["labels (y->top)"].bounded
    assert "noise at a cut does not protect weights" in by_channel["the final model"].protected_by
    heuristic = DefenceTerms(forward=(Method(name="nopeek", options={"alpha": 1.0}),))
    told = exposures(draft(terms(defence=(heuristic,)), network()).plan)[0].protected_by
    assert "bounds nothing (ε = ∞)" in told


def test_probes_and_checks_of_turns_are_said() -> None:
    plan = draft(terms(), network()).plan
    assert not [*watches(plan)]
    watched = replace(
        plan.terms,
        probe=ProbeTerms(share=0.1, after=20),
        training=replace(plan.terms.training, turn_check=TurnCheckTerms(window=10)),
    )
    probes, turns = watches(replace(plan, terms=watched))
    assert "from its step 21 on, 10% of the mini-batches of hospital-a" in probes
    assert "unlike most of the last 10" in turns
