"""The job by hand: init, keys, plan, accept, simulate. Each command says what it did and what comes next."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

from cli.typed import CommandLine

Edit = Callable[[str, str, str], None]


def test_init_writes_a_project_that_simulates_as_it_is(cutlayer: CommandLine, project: Path) -> None:
    result = cutlayer("simulate", "plan.toml", "--json", "result.json")
    assert result.code == 0, result.err
    report = json.loads(Path("result.json").read_text())
    assert report["metrics"].keys() == {"hospital-a", "hospital-b", "hospital-c"}
    assert all(scores["accuracy"] > 0.6 for scores in report["metrics"].values())
    assert report["versions"].keys() >= {"cutlayer", "torch", "python", "threads"}
    assert report["bytes"]["lab"]["received"] > 0
    assert report["weights"]["lab"].keys() == {"middle/lab"}
    assert report["times"]["total"] > 0


def test_init_never_overwrites(cutlayer: CommandLine, project: Path) -> None:
    before = (project / "plan.toml").read_text()
    assert "is there already" in cutlayer("init", project).sentence
    assert (project / "plan.toml").read_text() == before


def test_simulating_twice_gives_the_same_bits(cutlayer: CommandLine, project: Path) -> None:
    for name in ("one.json", "two.json"):
        assert cutlayer("simulate", "--json", name).code == 0
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    assert one["weights"] == two["weights"]
    assert one["history"] == two["history"]


def test_plan_check_says_what_crosses_and_what_stays(cutlayer: CommandLine, project: Path, edit: Edit) -> None:
    shown = cutlayer("plan", "check").out
    assert "bottom->middle" in shown
    assert "middle->head" in shown
    assert "labels: stay at the client" in shown
    assert "64" in shown  # 16 float32 a row
    edit("plan.toml", 'topology = "u_shaped"', 'topology = "vanilla"')
    edit("plan.toml", 'cut = ["bottom_relu", "middle_relu"]', 'cut = "bottom_relu"')
    assert "labels: leave the client" in cutlayer("plan", "check").out


def test_plan_check_lists_all_faults_at_once(cutlayer: CommandLine, project: Path, edit: Edit) -> None:
    edit("plan.toml", 'schedule = "alternating"', 'shedule = "alternating"\nschedule = "alternatin"')
    edit("plan.toml", "batch_size = 16", "batch_size = 0")
    edit("plan.toml", 'name = "Adam"', 'name = "Adom"')
    faults = cutlayer("plan", "check").sentence
    assert "shedule is no key of a plan: did you mean 'schedule'?" in faults
    edit("plan.toml", 'shedule = "alternating"\n', "")
    faults = cutlayer("plan", "check").sentence
    assert "did you mean 'alternating'?" in faults
    assert "batch_size = 0: at least 1" in faults
    assert "did you mean 'Adam'?" in faults


def test_accept_records_the_digest_and_refuses_another(cutlayer: CommandLine, project: Path) -> None:
    accepted = cutlayer("accept", "plan.toml")
    digest = accepted.out.split()[2]
    assert len(digest) == 64
    assert digest in (project / ".cutlayer" / "accepted.json").read_text()
    assert cutlayer("accept", "plan.toml", "--digest", digest[:12]).code == 0
    assert "different plans" in cutlayer("accept", "plan.toml", "--digest", "0000").sentence


def test_each_party_makes_its_key_and_the_authority_signs(cutlayer: CommandLine, tmp_path: Path) -> None:
    keys, authority = tmp_path / "a-keys", tmp_path / "authority"
    assert cutlayer("keys", "request", "hospital-a", "--keys", keys).code == 0
    assert stat.S_IMODE((keys / "hospital-a.key").stat().st_mode) == 0o600
    assert "--new" in cutlayer("keys", "sign", keys / "hospital-a.csr", "--authority", authority).sentence
    signed = cutlayer("keys", "sign", keys / "hospital-a.csr", "--authority", authority, "--new")
    assert signed.code == 0, signed.err
    assert "parties.hospital-a.key" in signed.out
    assert stat.S_IMODE((authority / "ca.key").stat().st_mode) == 0o600
    assert (keys / "hospital-a.crt").exists()
    assert not (authority / "hospital-a.key").exists()


def test_keys_demo_says_that_it_is_for_trying_out(cutlayer: CommandLine, project: Path) -> None:
    made = cutlayer("keys", "demo")
    assert "trying things out only" in made.out
    for party in ("lab", "hospital-a", "hospital-b", "hospital-c"):
        assert stat.S_IMODE((project / "keys" / f"{party}.key").stat().st_mode) == 0o600


def test_keys_are_never_overwritten(cutlayer: CommandLine, tmp_path: Path) -> None:
    assert cutlayer("keys", "request", "bank", "--keys", tmp_path).code == 0
    key = (tmp_path / "bank.key").read_bytes()
    assert cutlayer("keys", "request", "bank", "--keys", tmp_path).sentence
    assert (tmp_path / "bank.key").read_bytes() == key
