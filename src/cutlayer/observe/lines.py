"""Facts as lines of JSON, one fact a line: how a party's process tells them to another process on its machine."""

import json
from dataclasses import asdict
from typing import Any, Final, get_args

import msgspec

from cutlayer.observe.facts import Fact

KINDS: Final[dict[str, Any]] = {kind.__name__: kind for kind in get_args(Fact)}


def to_line(fact: Fact) -> str:
    """`{"fact": "Progressed", …}`, with the fact's own fields."""
    return json.dumps({"fact": type(fact).__name__, **msgspec.to_builtins(asdict(fact))})


def from_line(line: str) -> Fact | None:
    """The fact that a line states; None for a line that is none, such as what a user's own code printed.

    >>> from_line('{"fact": "Noticed", "party": "lab", "sentence": "lab listens on port 7443"}')
    Noticed(party='lab', sentence='lab listens on port 7443')
    """
    try:
        stated = json.loads(line)
        kind = KINDS[stated.pop("fact")]
        fact: Fact = msgspec.convert(stated, kind)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return fact
