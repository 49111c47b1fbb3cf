"""Breaks the code on purpose, one line at a time, and sees the tests that are named for it fail.

    scripts/mutate [WORDS]      all mutations of mutations.toml, or those whose name has these words

Each runs in a copy of the source of its own, `--jobs` at a time. A mutation is killed if its tests fail (are not merely
unable to run) within 30 s of processor time; first they must pass on the code as it is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutations.toml")
LIMIT_S = 30.0
"""Of processor time, for the tests of one mutation."""
PATIENCE_S = 300.0
"""On the clock: the machine may do other things."""
FAILED, PASSED = 1, 0
"""pytest's exit codes; others say that the tests could not run."""


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
    """How the tests of a mutation ended, and what they took."""

    code: int
    cpu_s: float
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="?", default="")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    mutations = [each for each in read() if args.words in each.name]
    faults = [fault for mutation in mutations for fault in misfits(mutation)]
    if faults or not mutations:
        sys.exit("\n".join(faults) or f"no mutation has {args.words!r} in its name")
    with ThreadPoolExecutor(args.jobs) as pool:
        sound = run(tuple(sorted({test for mutation in mutations for test in mutation.tests})), ROOT / "src")
        if sound.code != PASSED:
            sys.exit(f"some of these tests fail on the code as it is:\n{sound.said}")
        survivors = sum(not told(*pair) for pair in zip(mutations, pool.map(run_mutated, mutations), strict=True))
    print(f"{len(mutations) - survivors} passed, {survivors} failed")
    sys.exit(bool(survivors))


def read() -> list[Mutation]:
    with LIST.open("rb") as file:
        entries = tomllib.load(file)["mutation"]
    return [Mutation(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def misfits(mutation: Mutation) -> list[str]:
    """Why a mutation cannot be applied: its line must be there once."""
    count = (ROOT / mutation.file).read_text().count(mutation.old)
    return [] if count == 1 else [f"{mutation.name}: its line is {count} times in {mutation.file}: mend {LIST.name}"]


def told(mutation: Mutation, outcome: Outcome) -> bool:
    """Say how it went; whether the mutation was killed."""
    killed = outcome.code == FAILED and outcome.cpu_s <= LIMIT_S
    how = "killed  " if killed else "SURVIVED"
    print(f"{how} {outcome.cpu_s:5.1f} s  {mutation.name}", flush=True)
    if not killed:
        print(f"  exit code {outcome.code} of {' '.join(mutation.tests)}\n{outcome.said}", flush=True)
    return killed


def run_mutated(mutation: Mutation) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="cutlayer-mutation-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        target = source / Path(mutation.file).relative_to("src")
        target.write_text(target.read_text().replace(mutation.old, mutation.new))
        return run(mutation.tests, source)


def run(tests: tuple[str, ...], source: Path) -> Outcome:
    """The tests on the package in `source`, which goes before the installed one."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", *tests]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as told_file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=told_file, stderr=subprocess.STDOUT
        )
        late = threading.Timer(PATIENCE_S, process.kill)
        late.start()
        _, status, usage = os.wait4(process.pid, 0)
        late.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        told_file.seek(0)
        said = told_file.read().decode(errors="replace")[-2000:]
    return Outcome(code=process.returncode, cpu_s=usage.ru_utime + usage.ru_stime, said=said)


if __name__ == "__main__":
    main()
