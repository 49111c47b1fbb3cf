"""Runs of topologies in which parties have columns of the same rows, or several servers, for processes of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from cutlayer.model.parts import Parts
from cutlayer.party.agreement import Agreement, draft
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from processes.crew import Job

ROWS = 23
SIZES = {"a": 3, "b": 4}
PARTIES = ("a", "b", "c", "d", "server")


def _columns(name: str) -> Tensor:
    """What each party has of the same rows: features, classes or numbers."""
    torch.manual_seed(sum(map(ord, name)))
    return torch.randn(ROWS, SIZES.get(name, 2), dtype=torch.float64)


def _classes() -> Tensor:
    torch.manual_seed(5)
    return torch.randint(0, 3, (ROWS,))


def _linear(sizes: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Linear(*sizes, dtype=torch.float64), nn.Dropout(0.2), nn.Tanh())


def network(**sizes: tuple[int, int]) -> Parts:
    """Bottoms for a and b, and further parts of these sizes."""
    torch.manual_seed(1)
    bottoms = {f"bottom_{party}": _linear((size, 5)) for party, size in SIZES.items()}
    return Parts(**bottoms, **{name: _linear(own) for name, own in sizes.items()})


def chain() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(*(_linear((3 if n == 0 else 5, 5)) for n in range(4)))


@dataclass(frozen=True, kw_only=True)
class TopologyJob(Job):
    """A job with a model and rows of its own, by the topology's name."""

    case: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)

    def agreement(self) -> Agreement:
        return draft(self.terms, MODELS[self.terms.topology]())

    def data(self) -> dict[str, Dataset[Any]]:
        return DATA[self.terms.topology]()


def terms(topology: str, roles: Mapping[str, str], **more: Any) -> Terms:
    """The terms of a run of so many parties, 4 rounds of 3 steps."""
    schedule, training = more.pop("schedule", "joint"), more.pop("training", {})
    clients = {
        name: PartyTerms(
            role=role, input=(InputTerms(shape=(SIZES[name],), dtype="float64"),) if role == "client" else ()
        )
        for name, role in roles.items()
    }
    return Terms(
        topology=topology,
        schedule=schedule,
        model=ModelTerms(cut=more.pop("cut", ())),
        training=Training(
            **{
                "loss": Method(name="cross_entropy"),
                "optimizer": Method(name="Adam", options={"lr": 0.01}),
                "batch_size": 8,
                "rounds": 4,
                "held_out": 0.2,
                **training,
            }
        ),
        parties=clients,
        **more,
    )


def _with_labels(party: str, labels: Tensor) -> Callable[[], dict[str, Dataset[Any]]]:
    def data() -> dict[str, Dataset[Any]]:
        rows: dict[str, Dataset[Any]] = {name: TensorDataset(_columns(name)) for name in SIZES}
        rows[party] = TensorDataset(_columns(party), labels) if party in SIZES else TensorDataset(labels)
        return rows

    return data


def _tasks() -> dict[str, Dataset[Any]]:
    return _with_labels("server", _classes())() | {"d": TensorDataset(_columns("d"))}


def _with_auxiliary(name: str, outputs: int) -> Parts:
    torch.manual_seed(3)
    return Parts(bottom=_linear((SIZES["a"], 5)), **{name: _linear((5, outputs))}, top=_linear((5, 3)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vertical": lambda: network(top=(10, 3)),
    "vertical_u_shaped": lambda: network(middle=(10, 5), head=(5, 3)),
    "extended_vanilla": lambda: network(middle=(10, 5), top=(5, 3)),
    "multi_task": lambda: network(top_d=(10, 2), top_server=(10, 3)),
    "multi_hop": chain,
    "decoupled": lambda: _with_auxiliary("auxiliary", 3),
    "semi_supervised": lambda: _with_auxiliary("decoder", SIZES["a"]),
}
DATA: dict[str, Callable[[], dict[str, Dataset[Any]]]] = {
    "vertical": _with_labels("c", _classes()),
    "vertical_u_shaped": _with_labels("b", _classes()),
    "extended_vanilla": _with_labels("server", _classes()),
    "multi_task": _tasks,
    **dict.fromkeys(
        ("multi_hop", "decoupled", "semi_supervised"), lambda: {"a": TensorDataset(_columns("a"), _classes())}
    ),
}
JOBS: dict[str, TopologyJob] = {
    "vertical, a party with labels only": TopologyJob(
        terms=terms("vertical", {"a": "client", "b": "client", "c": "labels", "server": "server"}, labels_leave=True)
    ),
    "vertical, u-shaped, in micro-batches": TopologyJob(
        terms=terms(
            "vertical_u_shaped",
            {"a": "client", "b": "client", "server": "server"},
            labels="b",
            training={"micro_batches": 3},
        )
    ),
    "extended_vanilla, sealed talk": TopologyJob(
        terms=terms("extended_vanilla", {"a": "client", "b": "client", "d": "middle", "server": "server"})
    ),
    "multi_task, two servers": TopologyJob(
        terms=terms(
            "multi_task",
            {"a": "client", "b": "client", "server": "server", "d": "server"},
            training={"losses": {"top_d": Method(name="mse_loss")}, "loss_weights": {"top_d": 0.3}},
        )
    ),
    "decoupled, each second batch": TopologyJob(
        terms=terms(
            "decoupled",
            {"a": "client", "server": "server"},
            schedule="alternating",
            input=InputTerms(shape=(3,), dtype="float64"),
            training={"upload_every": 2},
        )
    ),
    "semi_supervised": TopologyJob(
        terms=terms(
            "semi_supervised",
            {"a": "client", "server": "server"},
            schedule="alternating",
            input=InputTerms(shape=(3,), dtype="float64"),
            training={"loss_weights": {"decoder": 0.5}},
        )
    ),
    "multi_hop, two hops": TopologyJob(
        terms=terms(
            "multi_hop",
            {"a": "client", "c": "hop", "d": "hop", "server": "server"},
            schedule="alternating",
            input=InputTerms(shape=(3,), dtype="float64"),
            cut=("0", "1", "2"),
        )
    ),
}
