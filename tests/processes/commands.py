"""`cutlayer` commands, each in a process of its own: new ones, as people start them, or forked, without their wait."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from processes.forking import forking


class Process(Protocol):
    """What `subprocess.Popen` has of it."""

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Running:
    """A command in a process of its own; what it says goes to a file."""

    process: Process
    told: Path

    @property
    def text(self) -> str:
        return self.told.read_text()

    def wait_for(self, words: str, timeout_s: float = 90) -> str:
        """The output, once `words` (a regular expression) are in it."""
        deadline = time.monotonic() + timeout_s
        while not re.search(words, self.text):
            assert time.monotonic() < deadline, f"{words!r} never came; it said:\n{self.text}"
            assert self.process.poll() is None or re.search(words, self.text), self.text
            time.sleep(0.05)
        return self.text

    def end(self, timeout_s: float = 90) -> int:
        return self.process.wait(timeout_s)


def new(arguments: list[str], folder: Path, told: Path) -> Running:
    """`cutlayer ARGUMENTS`, typed in a folder."""
    with told.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cutlayer", *arguments],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            start_new_session=True,
        )
    return Running(process, told)


def forked(arguments: list[str], folder: Path, told: Path) -> Running:
    """The same in a process that has loaded torch already: seconds earlier, and the same from there on."""
    told.touch()
    process = forking().Process(target=_typed, args=(arguments, folder, told))
    process.start()
    return Running(_Forked(process), told)


class _Forked:
    """A forked process, with the methods of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("cutlayer", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _typed(arguments: list[str], folder: Path, told: Path) -> None:
    from cutlayer.cli import main

    os.setsid()
    os.chdir(folder)
    for stream, name, flags in ((0, os.devnull, os.O_RDONLY), (1, told, os.O_WRONLY | os.O_APPEND)):
        os.dup2(os.open(name, flags), stream)
    os.dup2(1, 2)
    os.environ["COLUMNS"] = "200"
    sys.argv = ["cutlayer", *arguments]
    main()
