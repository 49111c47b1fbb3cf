"""Ctrl-C, a closed terminal and a polite kill, all as `KeyboardInterrupt`; and held back where one would do harm."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def raised() -> Iterator[None]:
    """Each of these signals raises `KeyboardInterrupt` in the main thread, even where the shell had it ignored."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def held() -> Iterator[list[int]]:
    """Signals wait: those that came are listed, and raise `KeyboardInterrupt` at the end."""
    came: list[int] = []
    with _handled(lambda number, frame: came.append(number)):
        yield came
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
