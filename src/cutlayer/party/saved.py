"""What a run leaves in a party's folder, and how it is read again to use the model."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutlayer.data.encoding import Encoding
from cutlayer.errors import RunError
from cutlayer.model.state import MODEL, ReplicaState
from cutlayer.party.replicas import Replicas
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Replica as Key

WEIGHTS, ENCODING = "weights.safetensors", "encoding.json"


def write_weights(target: Path, state: dict[str, Tensor], plan: Plan, party: str) -> Path:
    """Write a party's own weights, with the plan's digest and its name inside; whole or not at all."""
    temporary = target.with_suffix(".tmp")
    save_file(state, temporary, metadata={"plan": plan.digest, "party": party})
    temporary.replace(target)
    return target


def write_encoding(folder: Path, encoding: Encoding) -> None:
    """Write what a party's table was scaled and numbered by: it names columns, and stays with its party."""
    temporary = folder / f"{ENCODING}.tmp"
    temporary.touch(mode=0o600)
    temporary.write_bytes(encoding.to_json())
    temporary.replace(folder / ENCODING)


def read_weights(path: Path, plan: Plan, party: str = "") -> dict[str, Tensor]:
    """The weights in a file, or in a folder that a run has written; of `party`, or of whoever wrote them.

    Raises `RunError` if there are none, or they are of another plan or party.
    """
    path = path / WEIGHTS if path.is_dir() or not path.suffix else path
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise RunError(f"{path} is not there: name the folder that the party's run has saved its weights in") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read as weights ({error}): name a file that a run has saved") from error
    if said.get("plan") != plan.digest:
        raise RunError(
            f"{path} was trained under another plan ({said.get('plan', 'none')[:12]}…): take this plan's own"
        )
    if party and said.get("party") != party:
        raise RunError(f"{path} has the weights of {said.get('party')}, not of {party}: name {party}'s folder")
    return weights


def read_by_owner(folder: Path, plan: Plan, party: str) -> dict[str, dict[str, Tensor]]:
    """Where a server's replicas differ by client: the weights for each of those that have some of their own."""
    found = {owner: folder / f"weights-{owner}.safetensors" for owner in plan.owners}
    return {owner: read_weights(path, plan, party) for owner, path in found.items() if path.exists()}


def read_encoding(folder: Path, *, needed: bool = False) -> Encoding | None:
    """What the party's table was scaled and numbered by in training; None if its rows were numbers already.

    Raises `RunError` if there is none though it is `needed`, `DataError` for a file that is none.
    """
    path = (folder if folder.is_dir() or not folder.suffix else folder.parent) / ENCODING
    if needed and not path.exists():
        raise RunError(
            f"{path} is not there: it says what the table's columns were scaled and numbered by in training; name the "
            "folder that the party's run has saved, with its weights and this file"
        )
    return Encoding.from_json(path.read_bytes()) if path.exists() else None


def begin_with_saved(replicas: Replicas, key: Key, weights: Mapping[str, Tensor], party: str) -> None:
    """A replica of `party` begins with these parameters and buffers, by their names in the uncut model.

    Raises `RunError` for what is not there or does not fit.
    """
    pattern = replicas.pattern(key)
    initial = pattern.state()
    names = [name.removeprefix(MODEL) for name in initial.tensors if name.startswith(MODEL)]
    if missing := [name for name in names if name not in weights]:
        raise RunError(
            f"the saved weights have no {missing[0]!r}, which {key[0]} of {party} needs: name the folder that "
            f"{party}'s run of this plan has saved"
        )
    own = ReplicaState(tensors={MODEL + name: weights[name] for name in names}, counts=initial.counts)
    pattern.check(own, names=names)
    replicas.begin(key, own)
