"""Pinning writes public keys into a plan, all or none, and nothing else of the plan changes."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cutlayer.errors import CredentialError, PlanError
from cutlayer.keys import make_demo_kit, make_request, public_pin, sign_request
from cutlayer.keys.pairs import read_public_keys
from cutlayer.keys.pinning import pin_keys

PLAN = """\
# What all agree on.
name = "first-run"    # a name

[parties.lab]
role = "server"
address = "localhost:7443" # where the hospitals reach it

# The hospitals.
[parties.hospital-a]
role = "client"

[parties.hospital-b]   # the small one
role = "client"


[limits]
join_timeout_s = 1
"""
ALL = ("key", "signing_key", "sealing_key")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_demo_kit(tmp_path / "keys", ["lab", "hospital-a", "hospital-b", "visitor"])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def keys_of(kit: Path, party: str) -> dict[str, str]:
    public = read_public_keys(kit / f"{party}.pub", party)
    return {
        "key": public_pin(kit / f"{party}.crt"),
        "signing_key": public.signing,
        "sealing_key": public.sealing,
    }


def read(plan: Path) -> dict[str, Any]:
    return tomllib.loads(plan.read_bytes().decode())


def test_all_parties_keys_are_written_into_their_tables(plan: Path, kit: Path) -> None:
    pins = pin_keys(plan, kit)
    assert [(entry.party, entry.written, entry.equal, entry.missing) for entry in pins] == [
        (name, ALL, (), ()) for name in ("lab", "hospital-a", "hospital-b")
    ]
    meant = tomllib.loads(PLAN)
    for name in meant["parties"]:
        meant["parties"][name] |= keys_of(kit, name)
    assert read(plan) == meant


def test_comments_and_layout_stay(plan: Path, kit: Path) -> None:
    pin_keys(plan, kit)
    pinned = plan.read_text().splitlines(keepends=True)
    assert "".join(line for line in pinned if "key = " not in line) == PLAN
    lab = keys_of(kit, "lab")
    assert pinned[6:9] == [f'{name} = "{lab[name]}"\n' for name in ALL]


def test_pinning_again_changes_nothing_and_says_so(plan: Path, kit: Path) -> None:
    pin_keys(plan, kit)
    before = plan.read_bytes(), plan.stat().st_mtime_ns
    assert all((entry.written, entry.equal) == ((), ALL) for entry in pin_keys(plan, kit))
    assert before == (plan.read_bytes(), plan.stat().st_mtime_ns)


def test_what_one_party_lacks_is_named_and_the_others_are_pinned(plan: Path, kit: Path) -> None:
    (kit / "hospital-a.pub").unlink()
    for name in ("hospital-b.crt", "hospital-b.pub"):
        (kit / name).unlink()
    lab, first, second = pin_keys(plan, kit)
    assert lab.written == ALL
    assert (first.written, first.missing) == (("key",), ("hospital-a.pub",))
    assert (second.written, second.missing) == ((), ("hospital-b.crt", "hospital-b.pub"))
    assert read(plan)["parties"]["hospital-b"] == {"role": "client"}


def test_a_folder_without_any_partys_files_is_an_error(plan: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", make_demo_kit(tmp_path / "others", ["visitor"])):
        with pytest.raises(
            CredentialError, match=r"no NAME\.crt and no NAME\.pub of a party .*\(lab, hospital-a, hosp"
        ):
            pin_keys(plan, folder)
    assert plan.read_text() == PLAN


def test_another_pin_is_kept_and_nothing_is_written_unless_told(plan: Path, kit: Path, tmp_path: Path) -> None:
    pin_keys(plan, make_demo_kit(tmp_path / "other", ["lab"]))
    before = plan.read_bytes()
    with pytest.raises(CredentialError, match=r"\(parties\.lab\.key, .*signing_key, .*sealing_key\): ask .*--replace"):
        pin_keys(plan, kit)
    assert plan.read_bytes() == before
    pins = pin_keys(plan, kit, replace=True)
    assert pins[0].written == ALL
    assert read(plan)["parties"]["lab"].items() >= keys_of(kit, "lab").items()


def test_one_changed_key_is_named_alone(plan: Path, kit: Path) -> None:
    pin_keys(plan, kit)
    for name in ("lab.seal.key", "lab.pub"):
        (kit / name).unlink()
    make_request(kit, "lab")
    with pytest.raises(CredentialError, match=r"\(parties\.lab\.signing_key, parties\.lab\.sealing_key\)"):
        pin_keys(plan, kit)


def test_a_renewed_certificate_of_the_same_key_is_the_same_pin(plan: Path, kit: Path) -> None:
    pin_keys(plan, kit)
    sign_request(kit / "lab.csr", kit / "authority")
    assert pin_keys(plan, kit)[0].equal == ALL


def test_an_empty_pin_is_no_pin(plan: Path, kit: Path) -> None:
    plan.write_text(PLAN.replace('role = "server"', 'role = "server"\nkey = ""  # later'))
    assert pin_keys(plan, kit)[0].written == ALL
    assert "# later" in plan.read_text()


@pytest.mark.parametrize("ending", ["crt", "pub"])
def test_anothers_file_under_a_partys_name_is_refused(plan: Path, kit: Path, ending: str) -> None:
    shutil.copy(kit / f"visitor.{ending}", kit / f"lab.{ending}")
    with pytest.raises(CredentialError, match=rf"lab\.{ending} .*visitor.*, not (of )?lab"):
        pin_keys(plan, kit)
    assert plan.read_text() == PLAN


LAYOUTS = {
    "inline": 'parties.lab = { role = "server" } # one\nparties.hospital-a = { role = "client" }\nname = "x"\n',
    "dotted": 'parties.lab.role = "server" # one\nparties.hospital-a.role = "client"\nname = "x"\n',
    "in one table": '[parties]\nlab = {role = "server", a = 1}\nhospital-a.role = "client"\n[model]\ncut = []\n',
    "quoted": '[parties."lab"]\nrole = "server"\n[ parties . "hospital-a" ]\nrole = "client"',
    "scattered": '[parties.lab]\nrole = "server"\n[model]\ncut = ["a"]\n[parties.hospital-a]\nrole = "client"\n[z]\n',
    "windows": '# ä\r\n[parties.lab]\r\nrole = "server"\r\n\r\n[parties.hospital-a]\r\nrole = "client"\r\n',
    "sub-tables": '[parties.lab]\nrole = "server"\n[parties.lab.more]\na = 1\n[parties.hospital-a]\nrole = "client"\n',
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_toml_keeps_its_meaning(plan: Path, kit: Path, text: str) -> None:
    plan.write_bytes(text.encode())
    pin_keys(plan, kit)
    meant = tomllib.loads(text)
    for name in meant["parties"]:
        meant["parties"][name] |= keys_of(kit, name)
    assert read(plan) == meant
    assert all(entry.equal == ALL for entry in pin_keys(plan, kit))


def test_a_change_that_would_mean_something_else_is_not_written(
    plan: Path, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tomlkit.dumps", lambda _: 'name = "other"')
    with pytest.raises(PlanError, match=r"write one \[parties\.NAME\] for each party"):
        pin_keys(plan, kit)
    assert plan.read_text() == PLAN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[parties", "is not valid TOML"),
        ('name = "x"', "must have a table for each party"),
        ("parties = 3", "must have a table for each party"),
        ('[parties]\nlab = "server"', "must have a table for each party"),
    ],
)
def test_what_is_no_plan_is_told(plan: Path, kit: Path, text: str, words: str) -> None:
    plan.write_text(text)
    with pytest.raises(PlanError, match=words):
        pin_keys(plan, kit)


def test_a_plan_that_cannot_be_read_is_told(plan: Path, kit: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read .*cutlayer init"):
        pin_keys(plan.with_name("none.toml"), kit)
    plan.write_bytes(b"\xff")
    with pytest.raises(PlanError, match="not a text file in UTF-8"):
        pin_keys(plan, kit)
