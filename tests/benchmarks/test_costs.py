"""What crosses clients' borders in an epoch is what the papers' formulas say, to the byte; and no label is among it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import costs
from costs import FEDERATED, SETTINGS, TOLERANCE_PERCENT, Row, Setting

IMAGES, COLUMNS, U_SHAPED = SETTINGS


def rows_of(setting: Setting, clients: int, *schedules: str) -> list[Row]:
    return list(costs.compare(setting, clients, schedules))


def made_up(setting: Setting, clients: int, schedule: str) -> Row:
    return Row(
        setting=setting.name, clients=clients, schedule=schedule, formula=100.0, measured=100, deviation=0.0,
        winner_formula="split", winner="split",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads for a layer of 64 wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("setting", "clients", "schedules"),
    [
        (COLUMNS, 3, ("relay", "alternating", "splitfed_v1", "splitfed_v2")),
        (U_SHAPED, 3, ("relay", "splitfed_v1")),
        (IMAGES, 10, ("relay", "splitfed_v2")),
    ],
    ids=["columns", "u-shaped", "images"],
)
def test_an_epoch_carries_what_the_formulas_say(setting: Setting, clients: int, schedules: tuple[str, ...]) -> None:
    for row in rows_of(setting, clients, *schedules):
        assert row.measured == row.formula
        assert row.deviation == 0, "no client is off either, though three cannot share 500 rows evenly"
        assert row.holds


def test_a_client_alone_hands_nothing_over_which_is_less_than_a_hundredth() -> None:
    for setting in (COLUMNS, U_SHAPED):
        _, relay = rows_of(setting, 1, "relay")
        assert relay.formula - relay.measured == 4 * setting.client_parameters
        assert relay.holds


def test_the_winner_changes_at_the_crossover() -> None:
    assert 6 < IMAGES.crossover() < 7
    winners = {clients: rows_of(IMAGES, clients, "relay")[1].winner for clients in (6, 7)}
    assert winners == {6: FEDERATED, 7: "split"}


def test_labels_and_evaluation_cross_but_are_not_counted() -> None:
    result = costs.simulated(COLUMNS, "alternating", 4, rounds=1, held_out=0.2)
    counted = sum(costs.carried(result).values())
    assert counted == COLUMNS.due("alternating", costs.ROWS * 4 // 5, 4)
    crossings = [c for client in result.agreement.plan.clients for c in result.meters[client].crossings.values()]
    labels = sum(c.payload_bytes for c in crossings if c.carries == "labels" and c.purpose == "train")
    evaluated = sum(c.payload_bytes for c in crossings if c.carries is None and c.purpose == "eval")
    assert min(labels, evaluated) > counted * TOLERANCE_PERCENT / 100, "counting them would be seen"


def test_a_row_that_is_off_or_has_another_winner_does_not_hold() -> None:
    row = made_up(COLUMNS, 1, "relay")
    assert row.holds
    assert not replace(row, deviation=1.01).holds
    assert not replace(row, deviation=-1.01).holds
    assert not replace(row, winner=FEDERATED).holds


def test_with_adam_a_hand_over_is_three_times_as_long_and_the_closing_broadcast_stands_apart() -> None:
    handed = costs.hand_overs(COLUMNS)
    assert handed["sgd"] == handed["formula"] == 4 * COLUMNS.client_parameters
    assert 3 <= handed["adam"] / handed["formula"] < 3.01
    assert handed["closing_sgd"] == (costs.HANDED - 1) * handed["sgd"]
    assert handed["closing_adam"] == (costs.HANDED - 1) * handed["adam"]


def test_table_and_picture_show_every_point(tmp_path: Path) -> None:
    rows = [made_up(setting, count, name) for setting in SETTINGS for count in (2, 90) for name in costs.LOOKS]
    told = costs.table(costs.summary([*rows, replace(rows[0], deviation=-0.5)], [costs.hand_overs(COLUMNS)]))
    assert len([line for line in told.splitlines() if "split, split" in line]) == len(rows) * 4 // 5
    assert told.endswith("furthest off: -0.500%")
    costs.picture(rows).savefig(tmp_path / "costs.png")
    assert (tmp_path / "costs.png").stat().st_size > 10_000
