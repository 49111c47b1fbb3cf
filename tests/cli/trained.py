"""Projects that were trained by `cutlayer run`, a process for each party: banks with tables, and hospitals."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from pyarrow import csv as arrow_csv
from pyarrow import parquet
from torch import Tensor, nn

from cli.terminals import Terminals
from cutlayer import load_model
from cutlayer.cli.app import app
from cutlayer.data.tables import open_table
from cutlayer.party.local import read_party_file
from cutlayer.party.saved import read_encoding

ROWS, FRESH = 60, 21
"""Fresh rows are more than one mini-batch, and no multiple of it."""
LIMITS = "[limits]\njoin_timeout_s = 60\n"
BANKS = """
name = "banks"
format = 6
topology = "{topology}"
schedule = "joint"
labels = "{labels}"
[training]
loss = "cross_entropy"
optimizer = {{ name = "Adam", lr = 0.05 }}
batch_size = 8
rounds = 2
{more}
[model]
[parties.{server}]
role = "server"
[parties.bank-a]
role = "client"
input = [{{ shape = [7] }}, {{ shape = [1], dtype = "int64" }}]
[parties.bank-b]
role = "client"
input = {{ shape = [3] }}
"""
MODEL = """
from torch import nn
from cutlayer import Parts

class Bank(nn.Module):
    def __init__(self):
        super().__init__()
        self.region, self.rest = nn.Embedding(6, 4), nn.Linear(7, 4)
    def forward(self, x, codes):
        return nn.functional.relu(self.rest(x) + self.region(codes[:, 0]))

def build():
    bottom = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    return Parts(bottom_bank_a=Bank(), bottom_bank_b=bottom, REST)
"""
BANK_A = """
data = "bank-a.csv"
id = "cid"
[columns]
income = { kind = "number", missing = "flag" }
segment = { kind = "one_hot", size = 4 }
region = { kind = "embedded", size = 6 }
opened = { kind = "date", unit = "month" }
"""
BANK_B = """
data = "bank-b.parquet"
id = "cid"
LABEL
[columns]
score = { kind = "number" }
kind = { kind = "one_hot", size = 2 }
"""
B_COLUMNS = BANK_B.splitlines(keepends=True)[-2:]
LABEL = 'label = "bad"\nclasses = ["no", "yes"]\n'
HOSPITALS = """
name = "hospitals"
format = 6
topology = "u_shaped"
schedule = "alternating"
[training]
loss = "cross_entropy"
optimizer = { name = "Adam", lr = 0.05 }
batch_size = 8
rounds = 2
[input]
shape = [3]
[model]
cut = ["0", "2"]
[parties.lab]
role = "server"
[parties.hospital-a]
role = "client"
[parties.hospital-b]
role = "client"
"""
CHAIN = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
"""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder in which a plan was trained under, with each party's run beside it."""

    folder: Path
    parties: tuple[str, ...]
    """The conductor first."""
    name: str

    def run_of(self, party: str) -> Path:
        return self.folder / "runs" / self.name / party

    def encoded(self, party: str, rows: str) -> tuple[Tensor, ...]:
        """A table as the party's saved encoding makes numbers of it."""
        roles = read_party_file(self.folder / f"{party}.toml").roles
        assert roles is not None
        encoding = read_encoding(self.run_of(party))
        assert encoding is not None
        bare = replace(roles, label=None, classes=None)
        return open_table(self.folder / rows, bare, encoding=encoding).batch(slice(None))[0]

    def model(self, *parties: str) -> nn.Module:
        target = self.folder / "-".join(("model", *parties))
        weights = [word for party in parties or self.parties for word in ("--weights", self.run_of(party))]
        here("export", self.folder / "plan.toml", *weights, "--out", target)
        return load_model(target)


def here(*arguments: object) -> None:
    """A command that needs no process of its own."""
    app([str(argument) for argument in arguments], standalone_mode=False)


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if path.suffix == ".parquet":
        parquet.write_table(arrow_csv.read_csv(path), path)


def columns_of(path: Path) -> dict[str, list[Any]]:
    table = arrow_csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)
    return table.to_pydict()  # type: ignore[no-any-return]


def customers(rows: int, seed: int, *, unseen: str = "") -> dict[str, list[Row]]:
    """What each party has of them; with `unseen`, categories that training never met, and more that is missing."""
    random = Random(seed)  # noqa: S311 (rows, no secret)
    a, b, y = list[Row](), list[Row](), list[Row]()
    for row in range(rows):
        cid, income, score = f"c-{seed}-{row}", random.gauss(3000, 900), random.gauss(-5, 2)
        a.append({
            "cid": cid,
            "income": "" if row % 5 == 1 else income,
            "segment": unseen if row % 7 == 3 else random.choice(["gold", "silver", "tin"]),
            "region": unseen if row % 4 == 2 else random.choice(["n", "s", "e"]),
            "opened": f"20{random.randint(10, 24)}-0{random.randint(1, 9)}-01",
            "unused": 1,
        })  # fmt: skip
        b.append({"cid": cid, "score": score, "kind": random.choice(["x", "y"])})
        y.append({"cid": cid, "bad": "yes" if income / 900 + score > -2 else "no"})
    return {"bank-a": a, "bank-b": b, "bureau": y}


def banks(folder: Path, *, topology: str, rest: str, server: str, labels: str, more: str = "") -> Project:
    folder.mkdir()
    plan = BANKS.format(topology=topology, server=server, labels=labels, more=more)
    (folder / "plan.toml").write_text(plan + LIMITS)
    (folder / "model.py").write_text(MODEL.replace("REST", rest))
    (folder / "bank-a.toml").write_text(BANK_A)
    (folder / "bank-b.toml").write_text(BANK_B.replace("LABEL", LABEL if labels == "bank-b" else ""))
    (folder / "bureau.toml").write_text(f'data = "bureau.csv"\nid = "cid"\n{LABEL}')
    known, fresh = customers(ROWS, 1), customers(FRESH, 2, unseen="?!")
    if labels == "bank-b":
        known["bank-b"] = [row | {"bad": y["bad"]} for row, y in zip(known["bank-b"], known["bureau"], strict=True)]
    write(folder / "bank-a.csv", known["bank-a"])
    write(folder / "bank-b.parquet", known["bank-b"])
    write(folder / "bureau.csv", known["bureau"])
    write(folder / "new-a.csv", fresh["bank-a"])
    write(folder / "new-b.parquet", fresh["bank-b"])
    return Project(folder=folder, parties=(server, "bank-a", "bank-b"), name="banks")


def hospitals(folder: Path) -> Project:
    folder.mkdir()
    (folder / "plan.toml").write_text(HOSPITALS + LIMITS)
    (folder / "model.py").write_text(CHAIN)
    for seed, party in enumerate(("hospital-a", "hospital-b")):
        random = Random(seed)  # noqa: S311
        rows = [{"nr": 100 + n, **{name: random.gauss(n % 2, 1) for name in "abc"}, "ill": n % 2} for n in range(ROWS)]
        write(folder / f"{party}.csv", rows)
        unknown = {"ill": ""} if party == "hospital-b" else {}
        new = [{name: value for name, value in row.items() if name != "ill"} | unknown for row in rows[:FRESH]]
        write(folder / f"new-{party}.csv", new)
    (folder / "hospital-a.toml").write_text('data = "hospital-a.csv"\nfeatures = ["a", "b", "c"]\nlabel = "ill"\n')
    text = 'data = "hospital-b.csv"\nid = "nr"\nlabel = "ill"\n[columns]\na = "number"\nb = "number"\nc = "number"\n'
    (folder / "hospital-b.toml").write_text(text)
    return Project(folder=folder, parties=("lab", "hospital-a", "hospital-b"), name="hospitals")


def trained(project: Project, terminals: Terminals) -> Project:
    plan, keys = project.folder / "plan.toml", project.folder / "keys"
    here("plan", "weights", plan)
    here("keys", "demo", plan, "--keys", keys)
    here("keys", "pin", plan, "--keys", keys)
    here("accept", plan)
    ends = terminals.together(project.folder, {party: ["run"] for party in project.parties})
    assert {party: end.code for party, end in ends.items()} == dict.fromkeys(project.parties, 0), ends
    return project
