"""The crossing sheet counts what the channels saw."""

import io
from dataclasses import asdict
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.observe import sheet
from cutlayer.observe.sheet import Sheet, from_meters, from_reports


def crossing(edge: str, peer: str, **fields: Any) -> dict[str, Any]:
    """A crossing as a party's report lists it."""
    plain = {"way": "forward", "sent": True, "purpose": "train", "carries": None, "shapes": ["float32[8, 4]"]}
    counts = {"frames": 2, "rows": 16, "payload_bytes": 256, "frame_bytes": 300}
    return plain | counts | {"edge": edge, "peer": peer} | fields


def moved(source: str, target: str, **fields: Any) -> dict[str, Any]:
    """A state on the move as a party's report lists it."""
    plain = {"what": "replica", "of": "weights", "sent": True, "sealed": True}
    counts = {"frames": 3, "payload_bytes": 900, "frame_bytes": 1200}
    return plain | counts | {"source": source, "target": target} | fields


def crossings(**by_party: list[dict[str, Any]]) -> Sheet:
    """The sheet of reports with these crossings, and nothing moved."""
    return from_reports({party: {"crossings": listed, "moved": []} for party, listed in by_party.items()})


def told(sheet_: Sheet, width: int) -> str:
    """The sheet on a console of this width."""
    text = io.StringIO()
    console = Console(file=text, width=width)
    console.print(sheet.table(sheet_, width))
    console.print(sheet.moves_table(sheet_))
    return text.getvalue()


@pytest.fixture
def vanilla() -> Sheet:
    """As both ends of one cut report it."""
    return crossings(
        lab=[
            crossing("y->top", "clinic", sent=False, carries="labels", shapes=["int64[8]"], frame_bytes=80),
            crossing("bottom->top", "clinic", sent=False),
            crossing("bottom->top", "clinic", way="backward"),
        ],
        clinic=[
            crossing("bottom->top", "lab"),
            crossing("y->top", "lab", carries="labels", shapes=["int64[8]"], frame_bytes=80),
            crossing("bottom->top", "lab", way="backward", sent=False),
        ],
    )


def test_a_frame_that_both_ends_report_counts_once(vanilla: Sheet) -> None:
    assert [(line.sender, line.edge, line.carries, line.frames, line.bytes) for line in vanilla.lines] == [
        ("clinic", "y->top", "labels", 2, 80),
        ("clinic", "bottom->top", "activation", 2, 300),
        ("lab", "bottom->top", "gradient", 2, 300),
    ]


def test_labels_that_left_are_counted(vanilla: Sheet) -> None:
    assert vanilla.verdict == "rows: 0, labels: 16"


def test_one_partys_report_alone_gives_both_directions() -> None:
    alone = crossings(clinic=[crossing("a->b", "lab"), crossing("a->b", "lab", way="backward", sent=False)])
    assert [(line.sender, line.receiver) for line in alone.lines] == [("clinic", "lab"), ("lab", "clinic")]


def test_training_and_evaluation_stand_in_one_line() -> None:
    both = crossings(clinic=[crossing("a->b", "lab"), crossing("a->b", "lab", purpose="eval", rows=5)])
    (line,) = both.lines
    assert (line.frames, line.rows, line.bytes) == (4, 21, 600)


def test_raw_rows_that_left_are_counted() -> None:
    leak = crossings(clinic=[crossing("x->bottom", "lab", carries="rows")])
    assert leak.verdict == "rows: 16, labels: 0"
    assert leak.as_data()["rows"] == 16


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_and_shows_every_number(vanilla: Sheet, width: int) -> None:
    text = told(vanilla, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "clinic → lab" in text
    assert "float32[8, 4]" in text
    assert "labels" in text


@pytest.mark.parametrize("shape", ["float32[16, 32]", "float32[32, 8, 4, 4]"])
def test_the_table_of_a_u_shaped_run_fits_80_columns(shape: str) -> None:
    edges = [crossing("bottom->middle", "lab", shapes=[shape], frames=5000, rows=20000, frame_bytes=987_654)]
    text = told(from_reports({"hospital-a": {"crossings": edges}}), 80)
    assert "…" not in text
    assert shape.removeprefix("float32") in text


def test_an_evaluation_without_gradients_hides_no_shape() -> None:
    edges = [
        crossing("a->b", "lab", way="backward", purpose="eval", rows=0, shapes=[]),
        crossing("a->b", "lab", way="backward"),
    ]
    (line,) = crossings(clinic=edges).lines
    assert line.shapes == ("float32[8, 4]",)


def test_a_state_that_moved_counts_once_and_as_its_sender_saw_it() -> None:
    both = from_reports({
        "clinic": {"crossings": [], "moved": [moved("clinic", "ward")]},
        "ward": {"crossings": [], "moved": [moved("clinic", "ward", sent=False, payload_bytes=0)]},
        "lab": {"crossings": [], "moved": []},
    })  # fmt: skip
    (move,) = both.moves
    assert (move.sender, move.receiver, move.frames, move.bytes) == ("clinic", "ward", 3, 1200)
    assert both.as_data()["moved"][0]["sealed"] is True
    assert "clinic → ward  weights and optimizer, sealed" in told(both, 80)


def test_a_state_whose_sender_gave_no_report_counts_as_received() -> None:
    alone = from_reports({"ward": {"crossings": [], "moved": [moved("clinic", "ward", sent=False)]}})
    assert [(move.sender, move.receiver) for move in alone.moves] == [("clinic", "ward")]


def test_shares_and_means_are_told_apart() -> None:
    entries = [
        moved("clinic", "sum", what="share", of="gradients"),
        moved("clinic", "sum", what="share", sealed=False),
    ]
    text = told(from_reports({"clinic": {"crossings": [], "moved": entries}}), 80)
    assert "gradients, to be summed, sealed" in text
    assert "weights, to be averaged " in text


def test_a_simulated_relay_moves_weights_from_client_to_client() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    rows = {name: TensorDataset(torch.randn(8, 3), torch.arange(8) % 2) for name in ("clinic", "ward")}
    result = simulate(model, cut=0, schedule="relay", data=rows, rounds=2, held_out=0.25, lr=0.1)
    assert [(move.sender, move.receiver, move.sealed, move.frames) for move in from_meters(result.meters).moves] == [
        ("clinic", "ward", True, 2),
        ("ward", "clinic", True, 2),
    ]


@pytest.mark.parametrize(("topology", "cut", "labels"), [("u_shaped", (0, 1), 0), ("vanilla", (0,), 2 * 6 + 2 * 2)])
def test_simulated_runs_differ_in_the_labels_that_leave(topology: str, cut: tuple[int, ...], labels: int) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    rows = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    result = simulate(model, cut=cut, topology=topology, data={"clinic": rows}, rounds=2, held_out=0.25, lr=0.1)
    counted = from_meters(result.meters)
    assert (counted.rows, counted.labels) == (0, labels)
    assert counted.labels == result.meters["clinic"].raw_rows_sent("labels")
    assert sum(line.bytes for line in counted.lines) == sum(
        c["frame_bytes"] for meter in result.meters.values() for c in map(asdict, meter.crossings.values()) if c["sent"]
    )
