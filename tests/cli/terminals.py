"""Terminals, each a process of its own, in which one command after another is typed.

Torch loads slowly: it is loaded once, by the process that all of them are forked from, before it has threads.
"""

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from cli.typed import Typed
from processes.forking import forking

PATIENCE_S = 60.0
Arguments = Sequence[object]


class Terminal:
    """One process. `start` types a command, `end` waits for what it answers."""

    def __init__(self) -> None:
        context = forking()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._said: list[tuple[str, str]] = []
        self._code: int | None = None

    def start(self, folder: Path, *arguments: object) -> None:
        self._said, self._code = [], None
        self._pipe.send((str(folder), [str(argument) for argument in arguments]))

    def wait_for(self, words: str) -> re.Match[str] | None:
        """The words (a regular expression), once they were said; None if the command ended without them."""
        while self._code is None:
            if found := re.search(words, self._all("out") + self._all("err")):
                return found
            self._hear()
        return None

    def end(self) -> Typed:
        while self._code is None:
            self._hear()
        return Typed(self._code, self._all("out"), self._all("err"))

    def leave(self) -> None:
        self._pipe.close()

    def close(self) -> None:
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _hear(self) -> None:
        if not self._pipe.poll(PATIENCE_S):
            raise TimeoutError(f"nothing was said for {PATIENCE_S:g} s, after: {self._said}")
        kind, said = self._pipe.recv()
        if kind == "code":
            self._code = said
        else:
            self._said.append((kind, said))

    def _all(self, kind: str) -> str:
        return "".join(said for stream, said in self._said if stream == kind)


class Terminals:
    """One for each party of a project; the first is its conductor's."""

    def __init__(self, count: int) -> None:
        self._terminals = [Terminal() for _ in range(count)]

    def together(self, folder: Path, commands: Mapping[str, Arguments]) -> dict[str, Typed]:
        """Each party types its command: `{"lab": ["run"], …}`, the conductor first, since it has the port."""
        with_terminals = dict(zip(commands, self._terminals, strict=False))
        conductor, *others = commands
        port = self.listen(folder, conductor, commands[conductor])
        for party in others if port else ():
            self.dial(folder, party, commands[party], port, at=list(commands).index(party))
        return {party: with_terminals[party].end() for party in (commands if port else [conductor])}

    def listen(self, folder: Path, party: str, command: Arguments) -> int:
        """Start a conductor; the port that it has found, 0 if it ended before."""
        self._terminals[0].start(folder, *command, "--as", party, "--facts", "--listen", "127.0.0.1:0")
        found = self._terminals[0].wait_for(r"listens on port (\d+)")
        return int(found.group(1)) if found else 0

    def dial(self, folder: Path, party: str, command: Arguments, port: int, *, at: int) -> Terminal:
        """Start another party in the terminal with this number."""
        terminal = self._terminals[at]
        terminal.start(folder, *command, "--as", party, "--facts", "--connect", f"127.0.0.1:{port}")
        return terminal

    def end(self, at: int = 0) -> Typed:
        return self._terminals[at].end()

    def __enter__(self) -> "Terminals":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for terminal in self._terminals:
            terminal.leave()
        for terminal in self._terminals:
            terminal.close()


class _Said(io.TextIOBase):
    """A stream whose text is heard at once."""

    def __init__(self, pipe: Connection, kind: str) -> None:
        self._pipe, self._kind = pipe, kind

    def write(self, text: str) -> int:
        self._pipe.send((self._kind, text))
        return len(text)


def _work(pipe: Connection) -> None:
    import torch

    from cutlayer.cli import main

    torch.set_num_threads(1)
    while True:
        try:
            folder, arguments = pipe.recv()
        except EOFError:
            return
        os.chdir(folder)
        sys.argv = ["cutlayer", *arguments]
        code = 0
        with redirect_stdout(_Said(pipe, "out")), redirect_stderr(_Said(pipe, "err")):
            try:
                main()
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
        pipe.send(("code", code))
