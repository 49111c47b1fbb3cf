"""The demo's project: a folder for each party, with the shared plan and model, and its own keys and rows only."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from cutlayer.cli.demo.hospitals import HOSPITALS, Ward, deal
from cutlayer.cli.demo.interrupts import held
from cutlayer.cli.demo.sets import DataSet, chosen
from cutlayer.errors import PlanError
from cutlayer.keys.authority import make_demo_kit
from cutlayer.keys.files import hand_over
from cutlayer.keys.pinning import pin_keys
from cutlayer.party.agreement import Agreement, read_agreement, write_weights
from cutlayer.party.local import accept

LAB = "lab"
PARTIES = (LAB, *HOSPITALS)


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


def write_project(root: Path, data: str, topology: str, rounds: int) -> Agreement:
    """Write everything but the rows, and accept the plan on each party's behalf. Raises `PlanError`."""
    text = _plan_text(chosen(data), topology, rounds)
    kit = make_demo_kit(root / "kit", PARTIES)
    shared = root / LAB
    shared.mkdir()
    (shared / "model.py").write_text(_source(f"{data}/model.py"))
    plan = shared / "plan.toml"
    plan.write_text(text)
    pin_keys(plan, kit)
    write_weights(plan)
    agreement = read_agreement(plan)
    for name in PARTIES:
        folder = root / name
        if folder != shared:
            folder.mkdir()
            for file in ("plan.toml", "model.py", "initial.safetensors"):
                shutil.copy(shared / file, folder)
        own = _source("lab.toml" if name == LAB else f"{data}/hospital.toml")
        (folder / f"{name}.toml").write_text(own.replace("{name}", name))
        hand_over(kit, folder / "keys", name)
        accept(folder / "plan.toml", agreement.plan.digest)
    shutil.rmtree(kit)
    return agreement


def deal_rows(root: Path, data: str) -> dict[str, Ward]:
    """Each hospital's own rows, written into its own folder. Raises `DataError`."""
    data_set = chosen(data)
    wards = deal(data_set.load(), data_set.shares)
    for name, ward in wards.items():
        data_set.write(root / name / "train", ward.train)
        data_set.write(root / name / "held_out", ward.held_out)
    return wards


def _plan_text(data: DataSet, topology: str, rounds: int) -> str:
    if topology not in data.cuts:
        raise PlanError(f"the demo shows the topologies {' and '.join(data.cuts)}, not {topology!r}")
    text = _source("plan.toml")
    terms = {**data.terms, "topology": topology, "rounds": str(rounds), "cut": json.dumps(data.cuts[topology])}
    for name, value in terms.items():
        text = text.replace(f"{{{name}}}", value)
    return text + "".join(f'\n[parties.{name}]\nrole = "{"server" if name == LAB else "client"}"\n' for name in PARTIES)


def _source(name: str) -> str:
    return (files("cutlayer.cli.demo") / "files" / name).read_text()
