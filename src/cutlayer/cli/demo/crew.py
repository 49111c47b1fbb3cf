"""The demo's processes: each in its own folder and session, so that a Ctrl-C reaches them only through the demo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from cutlayer.cli.demo.interrupts import held
from cutlayer.errors import RunError
from cutlayer.observe.facts import Fact
from cutlayer.observe.lines import from_line

REPORT = "report.json"
_ERRORS = "errors.txt"
_SAYS = "cutlayer: "
"""How the one sentence of a failed command begins."""

POLL_S = 0.05
INTERRUPT_S = 10.0
"""How long processes have to end after an interrupt, before they are terminated."""
TERMINATE_S = 2.0
"""How long after that, before they are killed."""
GRACE_S = 0.5
"""After one process failed: how long to wait for others that fail, since the first may only be a victim."""


class Crew:
    """A context manager over `cutlayer run` processes: none of them is left when it ends, whatever ended it."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._folders: dict[str, Path] = {}
        self._readers: list[Thread] = []
        self._open: set[str] = set()
        self._lines: SimpleQueue[tuple[str, str | None]] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, folder: Path, *options: str) -> None:
        """Start a party in its folder, where it leaves its report."""
        command = [sys.executable, "-m", "cutlayer", "run", "plan.toml", "--as", name, "--facts", "--json", REPORT]
        with held(), (folder / _ERRORS).open("w") as errors:
            process = subprocess.Popen(  # noqa: S603 (this Python, our own arguments)
                [*command, *options],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            self._processes[name], self._folders[name] = process, folder
        self._open.add(name)
        reader = Thread(target=self._read, args=(name, process), daemon=True)
        reader.start()
        self._readers.append(reader)

    def facts(self) -> Iterator[Fact]:
        """What the processes tell, until all have ended; more may be started meanwhile.

        Raises `RunError` with the sentence of a process that failed.
        """
        while self._open:
            with suppress(Empty):
                name, line = self._lines.get(timeout=POLL_S)
                if line is None:
                    self._open.discard(name)
                    self._check(name)
                elif (fact := from_line(line)) is not None:
                    yield fact

    def stop(self) -> None:
        """End what still runs: interrupt, then terminate, then kill. A second Ctrl-C shortens the first wait."""
        with held() as signals:
            self._end(lambda process: process.send_signal(signal.SIGINT), INTERRUPT_S, hurry=signals)
            self._end(subprocess.Popen.terminate, TERMINATE_S)
            self._end(subprocess.Popen.kill, TERMINATE_S)
            for reader in self._readers:
                reader.join(TERMINATE_S)

    def _end(
        self, how: Callable[["subprocess.Popen[str]"], None], wait_s: float, hurry: list[int] | None = None
    ) -> None:
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            how(process)
        deadline = time.monotonic() + wait_s
        while any(process.poll() is None for process in running) and time.monotonic() < deadline and not hurry:
            time.sleep(POLL_S)

    def _read(self, name: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((name, line))
        self._lines.put((name, None))

    def _check(self, name: str) -> None:
        """Raises `RunError` if the process failed, or another one whose fault it rather was."""
        if self._processes[name].wait() == 0:
            return
        time.sleep(GRACE_S)
        failed = {party: self._sentence(party) for party, process in self._processes.items() if process.poll()}
        culprit = min(failed, key=lambda party: self._names_another(party, failed[party]))
        raise RunError(f"{culprit} failed: {failed[culprit]}")

    def _names_another(self, party: str, sentence: str) -> bool:
        return any(other in sentence for other in self._processes if other != party)

    def _sentence(self, name: str) -> str:
        """What a failed process said last."""
        text = (self._folders[name] / _ERRORS).read_text(errors="replace").strip()
        if _SAYS in text:
            return text.rpartition(_SAYS)[2]
        if text:
            return text.splitlines()[-1]
        code = self._processes[name].returncode
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code} and said nothing"
