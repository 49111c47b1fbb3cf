"""What is local to a party: its file, whose paths are its own, and what its person has accepted."""

from pathlib import Path

import pytest

from cutlayer.data.roles import Embedded, Number, TableRoles, plain_numbers
from cutlayer.errors import PlanError
from cutlayer.party.local import accept, check_accepted, read_party_file
from cutlayer.party.run import address_of

PLAN = """
topology = "vanilla"
schedule = "alternating"
[model]
[input]
shape = [4]
[training]
loss = "mse_loss"
optimizer = "sgd"
batch_size = 8
rounds = 1
[parties.a]
role = "client"
[parties.lab]
role = "server"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text("raise AssertionError('accepting runs nothing')\n")
    (tmp_path / "initial.safetensors").write_bytes(b"weights")
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_paths_of_a_partys_file_are_relative_to_its_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "party.toml"
    path.write_text('data = "rows.csv"\nkeys = "mine"\nlabel = "sick"\nfeatures = ["age"]\noptions = { size = 3 }\n')
    party = read_party_file(path)
    assert (party.data, party.keys) == (str(tmp_path / "rows.csv"), str(tmp_path / "mine"))
    assert (party.label, party.features, party.options) == ("sick", ["age"], {"size": 3})
    path.write_text('data = "package.module:rows"\n')
    assert read_party_file(path).data == "package.module:rows"


def test_a_partys_file_that_cannot_be_read_is_told_with_all_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "party.toml"
    with pytest.raises(PlanError, match="cannot be read"):
        read_party_file(path)
    path.write_text('dta = "rows.csv"\nthreads = "many"\n')
    with pytest.raises(PlanError, match=r"dta is no key of a party's file: did you mean 'data'") as caught:
        read_party_file(path)
    assert len(caught.value.faults) == 2


def test_a_plan_is_accepted_as_it_stands_with_its_files(plan: Path) -> None:
    with pytest.raises(PlanError, match="has not been accepted as it stands"):
        check_accepted(plan)
    accept(plan, "digest-1")
    assert check_accepted(plan) == "digest-1"


@pytest.mark.parametrize("name", ["plan.toml", "model.py", "initial.safetensors"])
def test_any_change_of_the_files_needs_a_new_acceptance_and_going_back_needs_none(plan: Path, name: str) -> None:
    accept(plan, "digest-1")
    path = plan.parent / name
    before = path.read_bytes()
    path.write_bytes(before + b"\n# a change\n")
    with pytest.raises(PlanError, match="has not been accepted as it stands"):
        check_accepted(plan)
    accept(plan, "digest-2")
    assert check_accepted(plan) == "digest-2"
    path.write_bytes(before)
    assert check_accepted(plan) == "digest-1"


def test_a_record_that_is_no_record_is_told(plan: Path) -> None:
    accept(plan, "digest-1")
    (plan.parent / ".cutlayer" / "accepted.json").write_text("{")
    with pytest.raises(PlanError, match="remove it and accept the plan again"):
        check_accepted(plan)


@pytest.mark.parametrize(
    ("text", "address"),
    [("lab.example.org:7443", ("lab.example.org", 7443)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80))],
)
def test_addresses_are_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert address_of(text, "lab") == address


@pytest.mark.parametrize("text", ["", "lab", "lab:", ":80", "lab:http", "lab:99999", "lab:-1"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(PlanError, match="is no address for lab: write host:port"):
        address_of(text, "lab")


TABLE = """
data = "customers.parquet"
id = "customer_id"
label = "default"
classes = ["no", "yes"]
aligned = "aligned.parquet"
unlabelled = true
[columns]
income = { kind = "number" }
region = { kind = "embedded", size = 16 }
"""


def test_a_partys_file_gives_each_column_its_role(tmp_path: Path) -> None:
    path = tmp_path / "party.toml"
    path.write_text(TABLE)
    party = read_party_file(path)
    assert party.aligned == str(tmp_path / "aligned.parquet")
    assert party.roles == TableRoles(
        columns={"income": Number(), "region": Embedded(size=16)},
        id="customer_id",
        label="default",
        classes=("no", "yes"),
        aligned=tmp_path / "aligned.parquet",
        unlabelled=True,
    )


def test_a_table_without_roles_ids_or_gaps_is_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "party.toml"
    path.write_text('data = "rows.csv"\nlabel = "sick"\nfeatures = ["age"]\n')
    assert read_party_file(path).roles is None


def test_features_beside_an_id_are_plain_numbers_and_a_label_alone_is_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "party.toml"
    path.write_text('id = "who"\nfeatures = ["age"]\n')
    assert read_party_file(path).roles == TableRoles(columns=plain_numbers(["age"]), id="who")
    for text in ('id = "who"\nlabel = "sick"\n', 'id = "who"\nlabel = "sick"\n[columns]\n'):
        path.write_text(text)
        assert read_party_file(path).roles == TableRoles(columns={}, id="who", label="sick")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            '[columns]\nage = "numbr"\nsex = { kind = "one_hot" }\n',
            ["did you mean 'number'", "columns.sex.size is missi"],
        ),
        ('features = ["age"]\n[columns]\nage = "number"\n', ["leave features out"]),
        ('label = "sick"\nunlabelled = true\n', ["unlabelled is for a table whose features are named"]),
        ('label = "age"\n[columns]\nage = "number"\n', ["column 'age' is the label, and has a role"]),
        ("columns = 3\n", ["columns = 3"]),
    ],
)
def test_all_faults_of_a_partys_columns_are_told(tmp_path: Path, text: str, faults: list[str]) -> None:
    path = tmp_path / "party.toml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        read_party_file(path)
    assert len(caught.value.faults) == len(faults)
    for fault, told in zip(caught.value.faults, faults, strict=True):
        assert told in fault
