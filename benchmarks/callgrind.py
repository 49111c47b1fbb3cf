"""How many machine instructions a session takes for each ticket, by party, counted by valgrind's callgrind.

    python benchmarks/callgrind.py [--write] [--json]

Unlike seconds, instructions hardly depend on what else a machine does. Sessions are fed what real ones were fed in a
run of one client, in a process without torch: the run is recorded first, and then a fork for each party feeds its
session anew, once that of a short run and once that of a longer one. Less what a fork counts that does nothing, the
difference of both, over the tickets that the longer one has more, is what a ticket costs; greetings and ends cancel
out. `--write` renews the golden file, from which a test
allows 10%. The counts differ by version of Python, and are kept for each. It needs valgrind, and half a minute.
"""

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "session_instructions.json"
MARGIN = 0.10
CASES: dict[str, dict[str, Any]] = {
    "vanilla": {"topology": "vanilla"},
    "u_shaped": {"topology": "u_shaped"},
    "vanilla, 4 micro-batches": {"topology": "vanilla", "micro_batches": 4},
}
"""The terms of each run: one client, `alternating`."""
BATCH = 8
SHORT, LONG = 10, 40
"""Steps."""
TIMEOUT_S = 600.0

Counts = dict[str, dict[str, int]]
"""Instructions for each ticket, by case and party."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {GOLDEN.relative_to(ROOT)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.replay:
        (args.replay / "replays.json").write_text(json.dumps(list(replays())))
        return
    if missing():
        sys.exit(missing())
    counts = counted()
    if args.write:
        write(counts)
    print(json.dumps({platform.python_version(): counts}) if args.json else table(counts, golden()))


def missing() -> str:
    """Why nothing can be counted here; empty if it can."""
    return "" if shutil.which("valgrind") else "valgrind is not installed: apt-get install valgrind"


def golden() -> Counts:
    """The counts that are kept for this version of Python; without any, none."""
    return _kept().get(platform.python_version(), {})


def write(counts: Counts) -> None:
    """Keep these counts for this version of Python, beside those of others."""
    GOLDEN.parent.mkdir(exist_ok=True)
    kept = _kept() | {platform.python_version(): counts}
    GOLDEN.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _kept() -> dict[str, Counts]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


# ---------------------------------------------------------------------- with valgrind


def counted() -> Counts:
    """Measured, in a process of its own under valgrind. Exits if that fails."""
    with tempfile.TemporaryDirectory(prefix="cutlayer-callgrind-") as name:
        folder = Path(name)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out.%p", sys.executable]
        ran = subprocess.run(
            [*command, __file__, "--replay", name],
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if ran.returncode:
            sys.exit(f"counting failed:\n{ran.stderr}")
        spent = {
            (case, party, steps): _total(folder / f"out.{fed}") - _total(folder / f"out.{idle}")
            for case, party, steps, fed, idle in json.loads((folder / "replays.json").read_text())
        }
    counts: Counts = {}
    for (case, party, steps), count in spent.items():
        if steps == LONG:
            tickets = (LONG - SHORT) * CASES[case].get("micro_batches", 1)
            counts.setdefault(case, {})[party] = round((count - spent[case, party, SHORT]) / tickets)
    return counts


def _total(path: Path) -> int:
    """The instructions of a process, from what callgrind wrote of it."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("totals:"))


# ---------------------------------------------------------------------- under valgrind


def replays() -> Iterator[tuple[str, str, int, int, int]]:
    """Case, party, steps, and the process ids of a fork that fed the session, and of one that did nothing."""
    from protocol.plans import CLIENTS, LAB  # (of the tests: only the process under valgrind has them in its path)

    for case, terms in CASES.items():
        for steps in (SHORT, LONG):
            fed, sessions = recorded(steps, terms)
            for party in (CLIENTS[0], LAB):
                idle = fork(sessions[party], [])
                yield case, party, steps, fork(sessions[party], fed[party]), idle


def recorded(steps: int, terms: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """What each party's session was fed in a run of so many steps, and a new session for each."""
    from cutlayer.protocol.messages import Rows
    from cutlayer.protocol.session import Session
    from protocol.joined import Wire
    from protocol.plans import CLIENTS, make_plan

    fed: dict[str, list[Any]] = {}

    class Recorded(Wire):
        def _fed(self, party: str, event: Any) -> list[Any]:
            fed.setdefault(party, []).append(event)
            return super()._fed(party, event)

    plan = make_plan(clients=1, batch_size=BATCH, **terms)
    rows = {CLIENTS[0]: Rows(steps * BATCH, 0)}
    wire = Recorded(plan, rows, shared=True).start().run()
    assert all(session.over for session in wire.sessions.values())
    return fed, {party: Session(plan, party, rows.get(party, Rows())) for party in fed}


def fork(session: Any, events: list[Any]) -> int:
    """A process that feeds a session; its id, once it has ended. Callgrind counts it apart."""
    gc.collect()
    if (pid := os.fork()) == 0:
        gc.disable()
        for event in events:
            session.feed(event)
        os._exit(0 if session.over or not events else 1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return pid


# ---------------------------------------------------------------------- in words


def table(counts: Counts, kept: Counts) -> str:
    lines = [f"instructions for each ticket, Python {platform.python_version()}"]
    for case, parties in counts.items():
        for party, count in parties.items():
            known = kept.get(case, {}).get(party)
            told = f"{count / known - 1:+.1%} of {known:,}" if known else "none kept"
            lines.append(f"  {case:26}{party:12}{count:>10,}   {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
