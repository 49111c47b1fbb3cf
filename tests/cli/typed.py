"""What a command that was typed has answered."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Typed:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of an error."""
        assert "Traceback" not in self.err
        assert self.code == 2, (self.code, self.err)
        return self.err


CommandLine = Callable[..., Typed]
