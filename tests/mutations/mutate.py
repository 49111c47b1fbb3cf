"""Breaks the code on purpose, one line at a time, and sees the tests that are named for it fail.

    scripts/mutate [WORDS]      all mutations of mutations.toml, or those whose name has these words

Each runs in a copy of the source of its own, `--jobs` at a time, without the longest tests. A mutation is
killed if its tests fail (are not merely unable to run) within 30 s of processor time; first they must pass on the code
as it is. Each run is a fork of this process, which has imported torch and its like, and nothing of cutlayer.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutations.toml")
LIMIT_S = 30.0
"""Of processor time, for the tests of one mutation."""
PATIENCE_S = 300.0
"""On the clock: the machine may do other things."""
FAILED, PASSED = 1, 0
"""pytest's exit codes; others say that the tests could not run."""
HEAVY = (
    "torch._dynamo",
    "scipy.stats",
    "dp_accounting.pld",
    "msgspec",
    "cryptography.x509",
    "pyarrow",
    "rich.table",
    "pytest",
)
"""Imported once, before the forks; not what pytest rewrites, such as plugins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One line of the source, what becomes of it, and the tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How tests ended, and what they took."""

    code: int
    cpu_s: float
    said: str


@dataclass(kw_only=True, slots=True)
class Work:
    """Tests on the package in a folder that `source` makes; `folders` go when they have ended."""

    tests: tuple[str, ...]
    source: Callable[[ExitStack], Path]
    folders: ExitStack = field(default_factory=ExitStack)
    output: Path = Path()
    begun: float = 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """For pytest: of the long tier only those of its tests that are named one by one."""

    tests: tuple[str, ...]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [each for each in items if each.nodeid in self.tests or not each.get_closest_marker("long")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="?", default="")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    mutations = [each for each in read() if args.words in each.name]
    faults = [fault for mutation in mutations for fault in misfits(mutation)]
    if faults or not mutations:
        sys.exit("\n".join(faults) or f"no mutation has {args.words!r} in its name")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    begun = time.monotonic()
    sound = run([Work(tests=part, source=lambda _: ROOT / "src") for part in parts(mutations, args.jobs)], args.jobs)
    if failed := [outcome.said for _, outcome in sound if outcome.code != PASSED]:
        sys.exit("some of these tests fail on the code as it is:\n" + "\n".join(failed))
    print(f"the tests pass on the code as it is: {time.monotonic() - begun:.0f} s", flush=True)
    works = [Work(tests=each.tests, source=mutated(each)) for each in mutations]
    survivors = sum(not told(mutations[number], outcome) for number, outcome in run(works, args.jobs))
    print(f"{len(mutations) - survivors} passed, {survivors} failed, {time.monotonic() - begun:.0f} s")
    sys.exit(bool(survivors))


def read() -> list[Mutation]:
    with LIST.open("rb") as file:
        entries = tomllib.load(file)["mutation"]
    return [Mutation(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def misfits(mutation: Mutation) -> list[str]:
    """Why a mutation cannot be applied: its line must be there once."""
    count = (ROOT / mutation.file).read_text().count(mutation.old)
    return [] if count == 1 else [f"{mutation.name}: its line is {count} times in {mutation.file}: mend {LIST.name}"]


def parts(mutations: Iterable[Mutation], count: int) -> list[tuple[str, ...]]:
    """All their tests, dealt out; a file's stay together, so that its fixtures are made once."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    files = sorted({test.partition("::")[0] for test in tests})
    dealt = [{*files[at::count]} for at in range(count)]
    return [part for own in dealt if (part := tuple(test for test in tests if test.partition("::")[0] in own))]


def told(mutation: Mutation, outcome: Outcome) -> bool:
    """Say how it went; whether the mutation was killed."""
    killed = outcome.code == FAILED and outcome.cpu_s <= LIMIT_S
    how = "killed  " if killed else "SURVIVED"
    print(f"{how} {outcome.cpu_s:5.1f} s  {mutation.name}", flush=True)
    if not killed:
        print(f"  exit code {outcome.code} of {' '.join(mutation.tests)}\n{outcome.said}", flush=True)
    return killed


def mutated(mutation: Mutation) -> Callable[[ExitStack], Path]:
    """Makes a copy of the source with the mutation in it; what is compiled comes along, but for the one file."""

    def make(folders: ExitStack) -> Path:
        source = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="cutlayer-mutation-"))) / "src"
        shutil.copytree(ROOT / "src", source)
        target = source / Path(mutation.file).relative_to("src")
        target.write_text(target.read_text().replace(mutation.old, mutation.new))
        for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
            compiled.unlink()
        return source

    return make


# ---------------------------------------------------------------------- forks


def run(works: Iterable[Work], jobs: int) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each, with its number, as they end."""
    waiting, running = enumerate(works), dict[int, tuple[int, Work]]()
    while True:
        while len(running) < jobs and (following := next(waiting, None)) is not None:
            running[begin(following[1])] = following
        if not running:
            return
        for pid, (number, work) in list(running.items()):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                del running[pid]
                said = work.output.read_text(errors="replace")[-2000:]
                work.folders.close()
                code = os.waitstatus_to_exitcode(status)
                yield number, Outcome(code=code, cpu_s=usage.ru_utime + usage.ru_stime, said=said)
            elif time.monotonic() - work.begun > PATIENCE_S:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def begin(work: Work) -> int:
    """Fork a process that runs the tests; its number."""
    source = work.source(work.folders)
    work.output = Path(work.folders.enter_context(tempfile.TemporaryDirectory(prefix="cutlayer-mutation-"))) / "said"
    work.begun = time.monotonic()
    pid = os.fork()
    if not pid:
        code = 3
        try:
            code = tested(work.tests, source, work.output)
        finally:
            os._exit(code)
    return pid


def tested(tests: tuple[str, ...], source: Path, output: Path) -> int:
    """In the fork: run the tests on the package in `source`, which goes before the installed one."""
    import pytest

    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(os.devnull if not stream else output, flags, 0o600), stream)
    os.dup2(1, 2)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(source)
    sys.path.insert(0, str(source))
    sys.dont_write_bytecode = source != ROOT / "src"
    code = int(pytest.main(["-x", *tests], plugins=[Chosen(tests)]))
    known = sys.modules.get("cutlayer")
    assert known is None or Path(known.__file__ or "").is_relative_to(source)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    main()
