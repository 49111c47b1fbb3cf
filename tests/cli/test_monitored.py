"""What `cutlayer run --monitor` tells the monitor of the plan."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cutlayer.cli.running import classes_seen
from cutlayer.party.agreement import draft
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from equivalence import topology_jobs

TERMS = Terms(
    topology="vanilla",
    schedule="alternating",
    model=ModelTerms(cut=("1",)),
    input=InputTerms(shape=(4,)),
    training=Training(
        loss=Method(name="cross_entropy"), optimizer=Method(name="SGD", options={"lr": 0.1}), batch_size=8, rounds=1
    ),
    parties={"a": PartyTerms(role="client"), "lab": PartyTerms(role="server")},
)


def network(outputs: int, *last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs), *last)


@pytest.mark.parametrize(
    ("loss", "model", "classes"),
    [
        ("cross_entropy", network(3), 3),
        ("binary_cross_entropy_with_logits", network(1), 2),
        ("binary_cross_entropy_with_logits", network(1, nn.Flatten(0)), 2),
        ("binary_cross_entropy_with_logits", network(3), 0),
        ("mse_loss", network(1), 0),
    ],
    ids=["classes", "one logit", "one logit, flat", "several logits", "numbers"],
)
@pytest.mark.parametrize("party", ["a", "lab"])
def test_labels_are_classes_where_their_loss_says_so(loss: str, model: nn.Module, classes: int, party: str) -> None:
    """Whoever brings labels, or is sent them; whole numbers that are compared by their squares are none."""
    training = replace(TERMS.training, loss=Method(name=loss))
    assert classes_seen(draft(replace(TERMS, training=training), model).plan, party) == classes


def test_of_several_tasks_each_party_has_its_own_and_of_two_kinds_there_are_none() -> None:
    roles = {"a": "client", "b": "client", "d": "server", "server": "server"}
    terms = topology_jobs.terms("multi_task", roles, training={"losses": {"top_d": Method(name="mse_loss")}})
    plan = draft(terms, topology_jobs.MODELS["multi_task"]()).plan
    assert {party: classes_seen(plan, party) for party in roles} == {"a": 0, "b": 0, "d": 0, "server": 3}
