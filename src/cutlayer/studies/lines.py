"""A link between two parties in numbers: as a person writes it, or as `cutlayer ping` has measured it."""

import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from cutlayer.errors import PlanError

Seconds = Annotated[float, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0)]
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]*)(?:ps|/s)?\s*", re.IGNORECASE)
BANDWIDTHS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "kb": 8e3, "mb": 8e6, "gb": 8e9}
"""Bits a second of each unit; `MB` is bytes."""
TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `cutlayer ping` found: of frames over mTLS, so with all that a frame costs at both ends.

    `rtt_s`: from a small frame to its answer, the median; `up` is from who dialled to who listened.
    """

    dialler: str
    listener: str
    rtt_s: Seconds
    lowest_rtt_s: Seconds
    up_bytes_per_s: Rate
    down_bytes_per_s: Rate
    frames: int
    largest_bytes: int


def read_bandwidth(text: str) -> float:
    """Bytes a second of `100Mbit`, `1.5 Gbit/s`, `12MB`. Raises `PlanError`.

    >>> read_bandwidth("100Mbit")
    12500000.0
    """
    return _value(text, BANDWIDTHS, "bandwidth", "100Mbit or 12.5MB") / 8


def read_time(text: str) -> float:
    """Seconds of `50ms`, `0.2 s`, `80us`. Raises `PlanError`.

    >>> read_time("50ms")
    0.05
    """
    return _value(text, TIMES, "time", "50ms or 0.05s", zero=True)


def _value(text: str, units: dict[str, float], what: str, example: str, *, zero: bool = False) -> float:
    found = _NUMBER.fullmatch(text)
    unit = found and units.get(found[2].lower())
    if not found or not unit or (not zero and not float(found[1])):
        raise PlanError(f"{text!r} is no {what}: write {example}")
    return float(found[1]) * unit


def write_measured(path: Path, measured: Measured) -> None:
    """Raises `PlanError` if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(measured)) + b"\n")
    except OSError as error:
        raise PlanError(f"{path} cannot be written to ({error.strerror}): choose another place") from error


def read_measured(path: Path) -> Measured:
    """What `write_measured` wrote. Raises `PlanError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    except OSError as error:
        raise PlanError(
            f"{path} cannot be read ({error.strerror}): `cutlayer ping … --json {path}` writes it"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not what `cutlayer ping --json` writes ({error})") from error
