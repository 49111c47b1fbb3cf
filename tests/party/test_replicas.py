"""Many replicas, few in memory: what rests on disk comes back bit for bit, and nothing is left behind."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.party.replicas import Replicas

ROWS = {"a": 9, "b": 14, "c": 8, "d": 13}


def data() -> dict[str, TensorDataset]:
    made = {}
    for seed, (name, count) in enumerate(ROWS.items()):
        random = torch.Generator().manual_seed(seed)
        made[name] = TensorDataset(torch.randn(count, 6, generator=random), torch.randint(0, 3, (count,)))
    return made


def run(schedule: str, **terms: Any) -> Result:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(),
        nn.Linear(40, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(),
        nn.Linear(40, 3),
    )
    settings: dict[str, Any] = {"optimizer": "adam", "lr": 0.01, "batch_size": 4, "rounds": 3, "seed": 3}
    return simulate(model, cut="2", data=data(), schedule=schedule, **settings | terms)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("schedule", "terms"),
    [
        ("splitfed_v1", {"averaged_optimizer": "keep"}),
        ("splitfed_v1", {"averaged_optimizer": "average", "clients_per_round": 2}),
        ("splitfed_v2", {"personal": ["type:BatchNorm1d"]}),
        ("splitfed_v3", {"proximal": 0.1}),
        ("alternating", {"turn": "batch"}),
        ("relay", {"turn": "batch"}),
    ],
)
def test_one_replica_in_memory_gives_the_bits_of_all_in_memory(schedule: str, terms: dict[str, Any]) -> None:
    one, all_in_memory = run(schedule, max_live=1, **terms), run(schedule, max_live=99, **terms)
    assert one.history == all_in_memory.history
    for name in ROWS:
        wanted = all_in_memory.model_for(name).state_dict()
        for key, value in one.model_for(name).state_dict().items():
            assert torch.equal(value, wanted[key]), f"{key} of {name}"


def test_what_rests_on_disk_is_gone_with_the_result(temporary: Path) -> None:
    result = run("splitfed_v1", averaged_optimizer="keep", max_live=1)
    assert list(temporary.glob("cutlayer-replicas-*/*"))
    del result
    gc.collect()
    assert not list(temporary.iterdir())


def test_where_nothing_is_kept_nothing_is_written(temporary: Path) -> None:
    run("splitfed_v1", max_live=1)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("schedule", ["splitfed_v1", "splitfed_v3", "alternating"])
def test_no_more_replicas_are_at_work_than_may_be(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = Replicas._made

    def counted(self: Replicas, key: tuple[str, str]) -> Any:
        made.append(key[0])
        return make(self, key)

    monkeypatch.setattr(Replicas, "_made", counted)
    run(schedule, max_live=2)
    assert max(map(made.count, set(made))) <= 2 + 1, "two workers, and a pattern to check others against"
