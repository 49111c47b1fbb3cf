"""Progress on a terminal, in a file, and from another process."""

import io

import pytest
from rich.console import Console

from cutlayer.observe.facts import Crossed, Fact, Noticed, Progressed, Resumed, Scored, Spent
from cutlayer.observe.lines import from_line, to_line
from cutlayer.observe.progress import LINES_PER_OWNER, ProgressBars
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Ticket


def progressed(owner: str, done: int, total: int = 8, party: str = "") -> Progressed:
    return Progressed(party=party or owner, owner=owner, round=(done - 1) // 4, done=done, total=total)


def scored(owner: str, purpose: str, **metrics: float) -> Scored:
    assert purpose in {"train", "eval"}
    return Scored(party=owner, owner=owner, turn=0, round=0, purpose=purpose, metrics=metrics)  # type: ignore[arg-type]


def shown(facts: list[Fact], *, terminal: bool, width: int = 80) -> str:
    """What a console shows of these facts."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, color_system=None)
    with ProgressBars(("clinic",), console) as bars:
        for fact in facts:
            bars(fact)
    return text.getvalue()


RUN: list[Fact] = [
    Noticed(party="clinic", sentence="clinic dials lab at [::1]:7443"),
    scored("clinic", "train", loss=0.5),
    *(progressed("clinic", done) for done in range(1, 9)),
    scored("clinic", "eval", loss=0.4, accuracy=0.75, rows=4.0),
]


def test_without_a_terminal_there_are_short_plain_lines() -> None:
    lines = shown(RUN, terminal=False).splitlines()
    assert lines[0] == "clinic dials lab at [::1]:7443"
    assert lines[1] == "clinic  2/8 steps  round 1  loss 0.500"
    assert len(lines) == 1 + LINES_PER_OWNER
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_a_bar_ends_full_with_the_last_numbers() -> None:
    last = shown(RUN, terminal=True).replace("\r", "\n").splitlines()
    final = next(line for line in reversed(last) if "clinic" in line)
    assert "8/8 round 2  loss 0.500  held-out 0.750" in final
    assert len(final) <= 80 + len("\x1b[2K")


def test_an_owner_waits_until_its_first_fact() -> None:
    assert "waiting" in shown([], terminal=True)


def test_facts_of_both_ends_of_a_cut_count_once() -> None:
    both = [progressed("clinic", done, party=party) for done in (1, 2, 3, 4) for party in ("clinic", "lab")]
    lines = shown([*both, progressed("clinic", 3, party="lab")], terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == ["2/8", "4/8"]


def test_a_regression_shows_its_held_out_loss() -> None:
    facts: list[Fact] = [scored("clinic", "eval", loss=1.25), progressed("clinic", 8)]
    assert "held-out 1.250" in shown(facts, terminal=False)


def test_an_owner_that_was_not_named_gets_its_own_line() -> None:
    assert "hospice  8/8 steps" in shown([progressed("hospice", 8)], terminal=False)


@pytest.mark.parametrize(
    "fact",
    [
        *RUN[:3],
        Spent(party="lab", on="wire", seconds=0.25),
        Crossed(
            party="lab", peer="clinic", edge="a->b", way="forward", sent=False, purpose="eval", rows=3, carries=None,
            shapes=(TensorShape("float32", (3, 2)),), payload_bytes=24, frame_bytes=99,
            run="r", ticket=Ticket(3, "clinic", 1, 0, "eval"),
        ),
    ],
)  # fmt: skip
def test_a_fact_survives_its_line(fact: Fact) -> None:
    assert from_line(to_line(fact)) == fact


@pytest.mark.parametrize("line", ["", "epoch 3 done", "{}", "[1]", "3", '{"fact": "Noticed"}', '{"fact": "Rumour"}'])
def test_a_line_that_is_no_fact_is_passed_over(line: str) -> None:
    assert from_line(line) is None


def resumed(save: int, absent: tuple[str, ...] = (), returned: tuple[str, ...] = ()) -> Resumed:
    return Resumed(party="clinic", save=save, round=1, absent=absent, returned=returned, scored=())


def test_a_run_that_is_taken_up_says_from_where_and_with_whom_and_one_that_begins_says_nothing() -> None:
    taken_up = resumed(7, absent=("clinic-b",), returned=("clinic-c", "clinic-d"))
    assert shown([resumed(-1)], terminal=False) == ""
    assert shown([taken_up], terminal=False).splitlines() == [
        "clinic goes on from save 7",
        "without clinic-b from round 1 on",
        "with clinic-c, clinic-d again from round 1 on",
    ]


def test_what_is_done_again_is_not_counted_twice_but_told_again() -> None:
    facts: list[Fact] = [progressed("clinic", 6), resumed(7), *(progressed("clinic", done) for done in range(5, 9))]
    lines = shown(facts, terminal=False).splitlines()
    assert lines[-1] == "clinic  8/8 steps  round 2"
    assert len(lines) > len(shown([progressed("clinic", 6), *facts[2:]], terminal=False).splitlines())
