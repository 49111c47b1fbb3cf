"""Two parties' audit logs of a few steps, and ways to tamper with them."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cutlayer.keys.signing import is_signed
from cutlayer.observe.audit import Audit
from cutlayer.observe.chain import Sign, digest_of, statement
from cutlayer.observe.compare import Pair, compare
from cutlayer.observe.facts import Crossed, Fact, Moved
from cutlayer.observe.trail import IsSigned, Trail, read_trail
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Ticket

KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number, name in enumerate(["lab", "clinic"])
}
RUN, PLAN = "f" * 32, "a" * 64


def public(party: str) -> IsSigned:
    return partial(is_signed, KEYS[party].public_key().public_bytes_raw().hex())


def clock() -> Callable[[], datetime]:
    seconds = count()
    return lambda: datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=next(seconds))


def crossed(party: str, step: int, way: Literal["forward", "backward"], **fields: Any) -> Crossed:
    """The activation from the clinic to the lab of a step, or its gradient, as one of them saw it."""
    sent = (party == "clinic") == (way == "forward")
    plain: dict[str, Any] = {
        "party": party,
        "peer": "clinic" if party == "lab" else "lab",
        "edge": "bottom->top",
        "way": way,
        "sent": sent,
        "purpose": "train",
        "rows": 8,
        "carries": None,
        "shapes": (TensorShape("float32", (8, 4)),),
        "payload_bytes": 128,
        "frame_bytes": 200,
        "run": RUN,
        "ticket": Ticket(0, "clinic", step, 0, "train"),
        "digest": digest_of([way.encode(), bytes([step])]),
    }
    return Crossed(**(plain | fields))


def moved(party: str, number: int, **fields: Any) -> Moved:
    """The clinic's share of an average, as one of them saw it."""
    plain: dict[str, Any] = {
        "party": party,
        "source": "clinic",
        "target": "lab",
        "what": "share",
        "of": "weights",
        "sent": party == "clinic",
        "sealed": False,
        "payload_bytes": 10 * (party == "clinic"),
        "frame_bytes": 200,
        "run": RUN,
        "number": number,
        "digest": digest_of([b"share", bytes([number])]),
    }
    return Moved(**(plain | fields))


def steps(party: str, numbers: Sequence[int]) -> list[Crossed]:
    return [crossed(party, step, way) for step in numbers for way in ("forward", "backward")]


def opened(path: Path, party: str, sign: Sign | None = None) -> Audit:
    return Audit(path, party=party, plan=PLAN, sign=sign or KEYS[party].sign, clock=clock())


def keep(path: Path, party: str, facts: Sequence[Fact]) -> Path:
    """A log of these facts, closed."""
    audit = opened(path, party)
    for fact in facts:
        assert audit(fact) is None
    audit.close()
    return path


def both(folder: Path, numbers: Sequence[int] = range(6)) -> tuple[Path, Path]:
    """The lab's and the clinic's log of an undisturbed run, 12 messages and a state."""
    logs = []
    for party in ("lab", "clinic"):
        logs.append(keep(folder / f"{party}.audit", party, [*steps(party, numbers), moved(party, 7)]))
    return logs[0], logs[1]


def trail(path: Path) -> Trail:
    return read_trail(path, public(path.stem))


def compared(*paths: Path) -> tuple[list[str], list[Pair]]:
    """All faults of the logs and between them."""
    trails = [trail(path) for path in paths]
    pairs = compare(trails)
    own = [fault for each in trails for fault in each.faults]
    return own + [fault for pair in pairs for fault in pair.faults], pairs


# ---------------------------------------------------------------------- tampering


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit(path: Path, number: int, **fields: Any) -> None:
    """Change a line, and nothing else."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | fields, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def chained_anew(path: Path, lines: Sequence[dict[str, Any]], party: str, sign: Sign | None = None) -> None:
    """Write these lines with right numbers and a chain that holds, and with other signatures if somebody can sign."""
    before, text = "", b""
    for number, fields in enumerate(lines, 1):
        said = fields | {"n": number, "before": before}
        if sign is not None and said["entry"] == "signed":
            said["signature"] = sign(statement(party, number, before)).hex()
        line = json.dumps(said, separators=(",", ":")).encode()
        before, text = digest_of([line]), text + line + b"\n"
    path.write_bytes(text)
