"""Breaks runs on purpose, many times, and writes what came of it into docs/faults.md.

    python tests/faults/sweep.py --count 200            from the first
    python tests/faults/sweep.py --count 200 --resume   goes on where it was stopped

Every run's faults are drawn by its number. Its record lies in build/faults/, and so does the story of a run that was
lost, or other, or hung. About 5 s a run on two idle cores.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ in {"__main__", "__mp_main__"}:
    sys.path[0] = str(ROOT / "tests")

from faults.crew import Crew, HangError, Outcome  # noqa: E402
from faults.faults import FRAME, SAVE, TICKET, Fault  # noqa: E402
from faults.jobs import EVERY_STEPS, JOBS, LIMITS, PARTIES, ROUNDS, differences, job_of, undisturbed  # noqa: E402
from faults.seeded import Acts, draw  # noqa: E402

TABLE = ROOT / "docs" / "faults.md"
FOLDER = ROOT / "build" / "faults"
RECORDS = FOLDER / "sweep.jsonl"
ALONE_SHARE = 0.7
"""How many runs have one fault; the others two or three."""
STAGES = {
    "load": "rows are loaded",
    "forward": "forward",
    "backward": "backward",
    "step": "an optimizer's step",
    "copy": "a save begins",
    "write": "a save is written, but for its name",
    "written": "a save is written",
    "commit": "a save is to hold",
    "committed": "a save holds",
    "remove": "a file of an older save is removed",
    "finish": "the run is over",
    "finished": "it is written that the run is over",
    "hello": "joining",
    "restore": "a save is taken up",
    FRAME: "a frame",
}
TEXT = """\
# What goes wrong, and what comes of it

Real processes, TLS connections on the loopback, one fault or several in each run; whoever is killed is started again
with the same arguments. Then the final weights, the scores and their history of every party are compared, bit for
bit, with a simulation of the same plan in which nothing goes wrong. Small networks, {rounds} rounds, a save after every
{every} steps; vanilla, u-shaped and vertical topologies, relay, and SplitFed V1 with an aggregator of its own.

{runs} runs with {faults} faults; {lost} lost, {other} with other bits, {hung} that hung.
Commit {commit}. Made by `python tests/faults/sweep.py --count {runs}`; the kinds are in `tests/faults/faults.py`.

| fault | while | struck | lost | other bits | hung | trained on after, median | longest |
|---|---|---|---|---|---|---|---|
{rows}

`trained on after`: seconds from the fault to the next step of training at the party that it struck, as a new process
if it was killed. A frozen process is woken after 0.2 to 6 s, and taken for lost after {silence:g} s; a frame is delayed
by up to 1 s. New processes are forked from one that has imported torch, on a machine of {cores} cores that did other
things, too.
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=200, help="how many runs there are to be")
    arguments.add_argument("--resume", action="store_true", help="keep the runs that were made of this commit")
    options = arguments.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    commit = _commit()
    records = [each for each in _read() if each["commit"] == commit] if options.resume else []
    RECORDS.write_text("".join(json.dumps(each) + "\n" for each in records))
    done = {each["index"] for each in records}
    with tempfile.TemporaryDirectory() as folder, Crew(Path(folder) / "crew", PARTIES) as crew:
        known: dict[str, Acts] = {}
        for index in range(options.count):
            if index not in done:
                records.append(_record(crew, known, index) | {"commit": commit})
                with RECORDS.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                print(index, records[-1]["job"], *records[-1]["faults"], records[-1]["end"], flush=True)
    TABLE.write_text(_text(records, commit))


def _record(crew: Crew, known: dict[str, Acts], index: int) -> dict[str, Any]:
    """One run: what struck, and how it ended."""
    name = list(JOBS)[index % len(JOBS)]
    job, dice = job_of(name, crew), random.Random(f"sweep {index}")  # noqa: S311
    if name not in known:
        known[name] = {party: member.news("acts")[0] for party, member in crew.run(job).members.items()}
    faults = draw(dice, known[name], 1 if dice.random() < ALONE_SHARE else dice.randint(2, 3))
    record = {"index": index, "job": name, "faults": list(map(str, faults))}
    try:
        outcome = crew.run(job, *faults)
    except HangError as error:
        _tell(index, str(error))
        return record | {"struck": [_struck(fault, None) for fault in faults], "end": "hung"}
    end = _end(outcome, differences(outcome, undisturbed().of(job)))
    if end != "same":
        _tell(index, "\n".join([*map(str, faults), outcome.story()]))
    server = job.terms.filling("server")[0]
    struck = [_struck(fault, outcome.back_after_s(at, fault, server)) for at, fault in outcome.struck]
    return record | {"struck": struck, "end": end}


def _struck(fault: Fault, back_after_s: float | None) -> dict[str, Any]:
    return {"kind": fault.kind, "at": fault.at, "back_after_s": back_after_s}


def _end(outcome: Outcome, found: list[str]) -> str:
    if any(not member.report for member in outcome.members.values()):
        return "lost"
    return "other" if found else "same"


def _tell(index: int, story: str) -> None:
    (FOLDER / f"{index}.txt").write_text(story)


def _read() -> Iterator[dict[str, Any]]:
    if RECORDS.exists():
        yield from map(json.loads, RECORDS.read_text().splitlines())


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "src") else ""
    return git("rev-parse", "--short=12", "HEAD") + changed


# ---------------------------------------------------------------------- the table


def _text(records: list[dict[str, Any]], commit: str) -> str:
    ends = [each["end"] for each in records]
    return TEXT.format(
        rounds=ROUNDS,
        every=EVERY_STEPS,
        silence=LIMITS.silence_timeout_s,
        cores=os.cpu_count(),
        runs=len(records),
        faults=sum(len(each["struck"]) for each in records),
        lost=ends.count("lost"),
        other=ends.count("other"),
        hung=ends.count("hung"),
        commit=commit,
        rows="\n".join(_rows(records)),
    )


def _rows(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    places: dict[tuple[str, str], list[tuple[str, float | None]]] = defaultdict(list)
    for record in records:
        for struck in record["struck"]:
            places[struck["kind"], struck["at"]].append((record["end"], struck["back_after_s"]))
    order = [*TICKET, *SAVE, FRAME]
    kinds = ["kill", "stop", "drop", "delay", "duplicate", "reorder", "corrupt", "truncate"]
    for (kind, at), met in sorted(places.items(), key=lambda each: (kinds.index(each[0][0]), order.index(each[0][1]))):
        ends = [end for end, _ in met]
        times = [time for _, time in met if time is not None]
        typical, longest = (f"{statistics.median(times):.1f} s", f"{max(times):.1f} s") if times else ("-", "-")
        counts = " | ".join(str(ends.count(end)) for end in ("lost", "other", "hung"))
        yield f"| {kind} | {STAGES[at]} | {len(met)} | {counts} | {typical} | {longest} |"


if __name__ == "__main__":
    main()
