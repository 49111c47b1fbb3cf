"""The demo's project: a folder for each party, with the shared plan and model, and its own keys and rows only."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from cutlayer.cli.demo.hospitals import SHARES, Ward, write_csv
from cutlayer.cli.demo.interrupts import held
from cutlayer.errors import PlanError
from cutlayer.keys.authority import make_demo_kit
from cutlayer.keys.certificates import public_pin
from cutlayer.party.agreement import Agreement, read_agreement, write_weights
from cutlayer.party.local import accept

LAB = "lab"
HOSPITALS = tuple(SHARES)
CUTS = {"u_shaped": ["bottom_relu", "middle_2_relu"], "vanilla": ["bottom_relu"]}


@contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """A folder for the demo, gone afterwards unless it was named. Raises `PlanError` if a named one is not empty."""
    if keep is None:
        folder = TemporaryDirectory(prefix="cutlayer-demo-")
        try:
            yield Path(folder.name)
        finally:
            with held():
                folder.cleanup()
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise PlanError(f"{keep} is there already: name an empty folder, or one to be made")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()


def write_project(root: Path, topology: str, rounds: int) -> Agreement:
    """Write everything but the rows, and accept the plan on each party's behalf. Raises `PlanError`."""
    kit = make_demo_kit(root / "kit", (LAB, *HOSPITALS))
    shared = root / LAB
    shared.mkdir()
    source = files("cutlayer.cli.demo") / "files"
    (shared / "model.py").write_text((source / "model.py").read_text())
    plan = shared / "plan.toml"
    plan.write_text(_plan_text((source / "plan.toml").read_text(), topology, rounds, kit))
    write_weights(plan)
    agreement = read_agreement(plan)
    for name in (LAB, *HOSPITALS):
        folder = root / name
        if folder != shared:
            folder.mkdir()
            for file in ("plan.toml", "model.py", "initial.safetensors"):
                shutil.copy(shared / file, folder)
        template = "lab.toml" if name == LAB else "hospital.toml"
        (folder / f"{name}.toml").write_text((source / template).read_text().replace("{name}", name))
        _hand_over_keys(kit, folder / "keys", name)
        accept(folder / "plan.toml", agreement.plan.digest)
    shutil.rmtree(kit)
    return agreement


def write_rows(root: Path, columns: list[str], wards: dict[str, Ward]) -> None:
    """Each hospital's own rows into its own folder."""
    for name, ward in wards.items():
        write_csv(root / name / "train.csv", columns, ward.train)
        write_csv(root / name / "held_out.csv", columns, ward.held_out)


def _plan_text(template: str, topology: str, rounds: int, kit: Path) -> str:
    if topology not in CUTS:
        raise PlanError(f"the demo shows the topologies {' and '.join(CUTS)}, not {topology!r}")
    filled = template.replace("{topology}", topology).replace("{rounds}", str(rounds))
    text = filled.replace("{cut}", json.dumps(CUTS[topology]))
    for name in (LAB, *HOSPITALS):
        role = "server" if name == LAB else "client"
        text += f'\n[parties.{name}]\nrole = "{role}"\nkey = "{public_pin(kit / f"{name}.crt")}"\n'
    return text


def _hand_over_keys(kit: Path, keys: Path, name: str) -> None:
    """A party gets its own key, its certificate and the authority's; nobody keeps a copy."""
    keys.mkdir()
    shutil.copy(kit / "ca.crt", keys)
    for ending in ("key", "crt"):
        shutil.move(kit / f"{name}.{ending}", keys)
