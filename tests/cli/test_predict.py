"""`cutlayer predict`, after `cutlayer run`: processes over mTLS on loopback, with tables, and every refusal."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cli.terminals import Terminals
from cli.trained import B_COLUMNS, FRESH, Project, banks, columns_of, customers, hospitals, trained, write
from cli.typed import CommandLine, Typed
from cutlayer.model.parts import as_tuple

Change = Callable[[Path], None]


def outputs_of(path: Path) -> Tensor:
    found = columns_of(path)
    return torch.tensor([found["output_0"], found["output_1"]], dtype=torch.float64).T


@pytest.fixture(scope="module")
def vertical(terminals: Terminals, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Labels at the bureau, which answers."""
    folder = tmp_path_factory.mktemp("vertical") / "banks"
    more = "party_dropout = 0.2"
    project = banks(
        folder, topology="vertical", rest="top=nn.Linear(8, 2)", server="bureau", labels="bureau", more=more
    )
    return trained(project, terminals)


@pytest.fixture(scope="module")
def u_shaped(terminals: Terminals, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Labels at a bank, which answers; the lab is in the middle."""
    folder, rest = tmp_path_factory.mktemp("u-shaped") / "banks", "middle=nn.Linear(8, 5), head=nn.Linear(5, 2)"
    return trained(banks(folder, topology="vertical_u_shaped", rest=rest, server="lab", labels="bank-b"), terminals)


@pytest.fixture(scope="module")
def horizontal(terminals: Terminals, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return trained(hospitals(tmp_path_factory.mktemp("horizontal") / "hospitals"), terminals)


def asked(**more: object) -> list[object]:
    """`cutlayer predict` with these options."""
    return ["predict", *(word for name, value in more.items() for word in (f"--{name}", value))]


def all_well(ends: Mapping[str, Typed]) -> None:
    assert not any(end.code for end in ends.values()), [end.err for end in ends.values()]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted.double(), rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", ["answers.csv", "answers.parquet"])
def test_the_bureau_answers_as_the_merged_model_does_on_the_encoded_tables(
    vertical: Project, terminals: Terminals, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    commands = {
        "bureau": asked(answers=path), "bank-a": asked(data="new-a.csv"), "bank-b": asked(data="new-b.parquet")
    }  # fmt: skip
    ends = terminals.together(vertical.folder, commands)
    all_well(ends)
    assert f"bureau: answers in {path}" in ends["bureau"].out
    assert "bank-a: its part is done; who has the loss has the answers" in ends["bank-a"].out
    x, codes = vertical.encoded("bank-a", "new-a.csv")
    (b,) = vertical.encoded("bank-b", "new-b.parquet")
    with torch.no_grad():
        wanted = vertical.model()((x, codes), b)
    assert wanted.shape == (FRESH, 2)
    close(outputs_of(path), wanted)
    found = columns_of(path)
    assert found["answer"] == [["no", "yes"][best] for best in wanted.argmax(1).tolist()]
    assert found["row"] == list(range(FRESH))
    assert "id" not in found  # the bureau has no rows of these
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_fresh_rows_are_encoded_by_what_training_rows_said(vertical: Project) -> None:
    """The mean and the places are those of training: unseen categories are the others, gaps the mean."""
    x, codes = vertical.encoded("bank-a", "new-a.csv")
    fresh = columns_of(vertical.folder / "new-a.csv")
    unseen = [segment == "?!" for segment in fresh["segment"]]
    assert x[:, 5].bool().tolist() == unseen
    assert (codes[:, 0] == 0).tolist() == [region == "?!" for region in fresh["region"]]
    gaps = [income is None for income in fresh["income"]]
    assert x[:, 1].bool().tolist() == gaps
    assert not x[gaps, 0].any()
    assert any(gaps)
    assert any(unseen)


def test_without_a_bank_its_activation_is_zeros(vertical: Project, terminals: Terminals, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    commands = {"bureau": asked(answers=path, without="bank-b"), "bank-a": asked(data="new-a.csv")}
    all_well(terminals.together(vertical.folder, commands))
    parts: Any = vertical.model().segments
    with torch.no_grad():
        one = as_tuple(parts["bottom_bank_a"](*vertical.encoded("bank-a", "new-a.csv")))[0]
        close(outputs_of(path), parts["top"](torch.cat([one, torch.zeros(FRESH, 4)], 1)))


def test_a_bank_that_answers_names_its_rows_by_id(u_shaped: Project, terminals: Terminals) -> None:
    commands = {"lab": asked(), "bank-a": asked(data="new-a.csv"), "bank-b": asked(data="new-b.parquet")}
    ends = terminals.together(u_shaped.folder, commands)
    all_well(ends)
    path = u_shaped.run_of("bank-b") / "answers.csv"
    assert "bank-b: answers in runs/banks/bank-b/answers.csv" in ends["bank-b"].out
    assert "lab: its part is done" in ends["lab"].out
    found = columns_of(path)
    assert list(found) == ["row", "id", "answer", "output_0", "output_1"]
    assert found["id"] == [f"c-2-{row}" for row in range(FRESH)]
    inputs = u_shaped.encoded("bank-a", "new-a.csv"), u_shaped.encoded("bank-b", "new-b.parquet")[0]
    with torch.no_grad():
        close(outputs_of(path), u_shaped.model()(*inputs))


@pytest.mark.parametrize(("party", "other"), [("hospital-a", "hospital-b"), ("hospital-b", "hospital-a")])
def test_one_hospital_asks_alone(horizontal: Project, terminals: Terminals, party: str, other: str) -> None:
    commands = {"lab": asked(without=other), party: asked(data=f"new-{party}.csv")}
    ends = terminals.together(horizontal.folder, commands)
    all_well(ends)
    path = horizontal.run_of(party) / "answers.csv"
    found = columns_of(path)
    rows = columns_of(horizontal.folder / f"new-{party}.csv")
    x = torch.tensor([rows[name] for name in "abc"]).T
    if party == "hospital-b":
        (x,) = horizontal.encoded(party, f"new-{party}.csv")
        assert found["id"] == rows["nr"]
    with torch.no_grad():
        wanted = horizontal.model("lab", party)(x)
    close(outputs_of(path), wanted)
    assert found["answer"] == wanted.argmax(1).tolist()


def test_whoever_comes_to_train_is_sent_away_and_predictions_go_on(horizontal: Project, terminals: Terminals) -> None:
    port = terminals.listen(horizontal.folder, "lab", asked(without="hospital-b"))
    sentence = terminals.dial(horizontal.folder, "hospital-a", ["run", "--anew"], port, at=1).end().sentence
    assert "wrong-task" in sentence
    assert "it came to" in sentence
    again = terminals.dial(horizontal.folder, "hospital-a", asked(data="new-hospital-a.csv"), port, at=1).end()
    assert (again.code, terminals.end().code) == (0, 0)


def test_tables_with_other_numbers_of_rows_end_it_for_all(
    vertical: Project, terminals: Terminals, tmp_path: Path
) -> None:
    short = tmp_path / "short.csv"
    write(short, customers(FRESH, 2)["bank-a"][:-1])
    path = tmp_path / "answers.csv"
    commands = {"bureau": asked(answers=path), "bank-a": asked(data=short), "bank-b": asked(data="new-b.parquet")}
    ends = terminals.together(vertical.folder, commands)
    assert all(f"bank-a {FRESH - 1}" in end.sentence and f"bank-b {FRESH}" in end.sentence for end in ends.values()), (
        ends
    )
    assert not path.exists()


def test_tables_with_the_same_rows_in_another_order_end_it_for_all(
    vertical: Project, terminals: Terminals, tmp_path: Path
) -> None:
    turned, path = tmp_path / "turned.csv", tmp_path / "answers.csv"
    write(turned, customers(FRESH, 2)["bank-a"][::-1])
    commands = {"bureau": asked(answers=path), "bank-a": asked(data=turned), "bank-b": asked(data="new-b.parquet")}
    ends = terminals.together(vertical.folder, commands)
    assert all("do not have the same rows" in end.sentence for end in ends.values()), ends
    assert not path.exists()


# ---------------------------------------------------------------------- refusals before anybody is called


@pytest.fixture
def inside(vertical: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the project, to spoil; the test runs inside it."""
    folder = tmp_path / "banks"
    shutil.copytree(vertical.folder, folder)
    monkeypatch.chdir(folder)
    return folder


A = ("--as", "bank-a", "--data", "new-a.csv")


def edit(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def overwrite(name: str, data: bytes) -> Change:
    return lambda folder: void((folder / name).write_bytes(data))


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def void(_: object) -> None:
    """Nothing."""


RUN = "runs/banks/bank-a"
REFUSALS: dict[str, tuple[Change, tuple[object, ...], str]] = {
    "no weights": (remove(f"{RUN}/weights.safetensors"), A, "weights.safetensors is not there: name the folder"),
    "no run": (void, (*A, "--weights", "elsewhere"), "is not there: name the folder"),
    "spoilt weights": (overwrite(f"{RUN}/weights.safetensors", b"?" * 99), A, "cannot be read as weights"),
    "another's weights": (
        void, (*A, "--weights", "runs/banks/bank-b"), "has the weights of bank-b, not of bank-a: name bank-a's folder"
    ),
    "no encoding": (remove(f"{RUN}/encoding.json"), A, "encoding.json"),
    "spoilt encoding": (overwrite(f"{RUN}/encoding.json", b"{}"), A, "this is no encoding that this cutlayer reads"),
    "a column is gone": (edit("new-a.csv", "income", "incomes"), A, "'income'"),
    "another role": (
        edit("bank-a.toml", '{ kind = "one_hot", size = 4 }', '{ kind = "one_hot", size = 5 }'), A,
        "column 'segment' had another role when the model was trained: write [columns] as it was then",
    ),
    "other columns": (
        edit("bank-a.toml", 'region = { kind = "embedded", size = 6 }\n', ""), A, "when the model was trained",
    ),
    "another order": (
        edit("bank-b.toml", B_COLUMNS[0] + B_COLUMNS[1], B_COLUMNS[1] + B_COLUMNS[0]),
        ("--as", "bank-b", "--data", "new-b.parquet"), "when the model was trained",
    ),
    "without the conductor": (void, ("--as", "bureau", "--without", "bureau"), "nothing goes without it"),
    "without anybody": (
        void, ("--as", "bureau", "--without", "bank-a", "--without", "bank-b"), "nothing is left that answers"
    ),
    "without a stranger": (void, ("--as", "bureau", "--without", "bank-c"), "'bank-c' is no party"),
    "answers of another kind": (void, ("--as", "bureau", "--answers", "answers.txt"), "neither .csv nor .parquet"),
    "not accepted": (edit("plan.toml", "rounds = 2", "rounds = 3"), A, "has not been accepted as it stands"),
    "no party": (void, ("--as", "bank-c"), "'bank-c' is no party of plan.toml"),
    "no rows": (remove("bank-a.csv"), ("--as", "bank-a"), "bank-a.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_at_once_in_one_sentence(cutlayer: CommandLine, inside: Path, name: str) -> None:
    change, arguments, told = REFUSALS[name]
    change(inside)
    listen = ("--listen", "127.0.0.1:0") if "bureau" in arguments else ("--connect", "127.0.0.1:1")
    sentence = cutlayer("predict", *arguments, *listen, "--facts").sentence
    assert told in sentence
    assert sentence.startswith("cutlayer: ")
    assert sentence.count("\n") == 1
    assert not list(inside.rglob("answers*"))


def test_weights_of_another_plan_are_refused(cutlayer: CommandLine, inside: Path, u_shaped: Project) -> None:
    sentence = cutlayer("predict", *A, "--weights", u_shaped.run_of("bank-a"), "--connect", "127.0.0.1:1").sentence
    assert "was trained under another plan" in sentence


def test_a_plan_without_party_dropout_does_without_nobody(
    cutlayer: CommandLine, u_shaped: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(u_shaped.folder)
    sentence = cutlayer("predict", "--as", "lab", "--without", "bank-a", "--listen", "127.0.0.1:0").sentence
    assert "the model never learned to do without bank-a: train it with training.party_dropout" in sentence


def test_a_horizontal_plan_without_any_client_has_nothing_to_answer(
    cutlayer: CommandLine, horizontal: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(horizontal.folder)
    without = ("--without", "hospital-a", "--without", "hospital-b")
    sentence = cutlayer("predict", "--as", "lab", *without, "--listen", "127.0.0.1:0").sentence
    assert "without hospital-a, hospital-b nothing is left that answers" in sentence


def test_export_names_what_is_missing_and_refuses_two_owners_of_one(
    cutlayer: CommandLine, vertical: Project, horizontal: Project, tmp_path: Path
) -> None:
    weights = [word for party in ("bureau", "bank-a") for word in ("--weights", vertical.run_of(party))]
    sentence = cutlayer("export", vertical.folder / "plan.toml", *weights, "--out", tmp_path / "model").sentence
    assert "nobody has released bottom_bank_b (of bank-b)" in sentence
    weights = [word for party in horizontal.parties for word in ("--weights", horizontal.run_of(party))]
    plan = horizontal.folder / "plan.toml"
    assert "in two parts" in cutlayer("export", plan, *weights, "--out", tmp_path / "model").sentence
    assert "no folder, nor does it end in .onnx" in cutlayer(
        "export", plan, *weights[:4], "--out", tmp_path / "model.zip"
    ).sentence  # fmt: skip
    assert not list(tmp_path.iterdir())
