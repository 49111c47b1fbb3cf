"""`cutlayer plan advise`: where to cut a model, for a sample of the data and a link."""

from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape

from cutlayer.cli.running import rows_of, set_threads
from cutlayer.errors import DataError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.table import Table

    from cutlayer.plan.terms import Training
    from cutlayer.studies.advisor import Advice, Choice, Setting
    from cutlayer.studies.calibration import Overheads
    from cutlayer.studies.flops import Operations
    from cutlayer.studies.pipeline import Line
    from cutlayer.studies.survey import Survey

MOST_MICROS = 64


def advise(  # noqa: PLR0913 (each option is one word of the question)
    model: Annotated[Path, typer.Argument(help="A Python file that has build() -> nn.Module.")] = Path("model.py"),
    *,
    data: Annotated[str, typer.Option(help="A sample: rows.csv, rows.npz, or package.module:factory.")] = "",
    label: Annotated[str, typer.Option(help="The table's column of labels.")] = "",
    own_file: Annotated[
        Path | None, typer.Option("--party-file", help="A party's own file, which says how its data is read.")
    ] = None,
    bandwidth: Annotated[str, typer.Option(help="Of the link, each way: 100Mbit, 12.5MB.")] = "",
    rtt: Annotated[str, typer.Option(help="Of the link, there and back: 50ms.")] = "",
    link: Annotated[Path | None, typer.Option(help="Or the link as `cutlayer ping --json FILE` measured it.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a mini-batch.")] = 64,
    codecs: Annotated[str, typer.Option(help="Codecs to compare, with commas between.")] = "raw,half,int8",
    micro_batches: Annotated[str, typer.Option(help="Into how many a mini-batch is split, with commas.")] = "1,2,4,8",
    cuts: Annotated[str, typer.Option(help="Only these layers, with commas; by default all.")] = "",
    loss: Annotated[str, typer.Option(help="By its name in torch.nn.functional.")] = "cross_entropy",
    optimizer: Annotated[str, typer.Option(help="By its name in torch.optim.")] = "SGD",
    server_speed: Annotated[float, typer.Option(help="How many times as fast the server computes.")] = 1.0,
    local_steps: Annotated[int, typer.Option(min=0, help="Of federated averaging, a round; 0: an epoch.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads for torch; 0 leaves its default.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw them here: FILE.png.")] = None,
) -> None:
    """Advise where to cut: FLOPs, memory, bytes and steps a second of every possible cut, on this machine."""
    from cutlayer.party.agreement import build_model
    from cutlayer.party.local import PartyFile, read_party_file
    from cutlayer.studies.advisor import Setting
    from cutlayer.studies.advisor import advise as advise_on
    from cutlayer.studies.calibration import calibrate
    from cutlayer.studies.codecs import named
    from cutlayer.studies.survey import survey

    here = read_party_file(own_file) if own_file else PartyFile()
    here = replace(here, data=data or here.data, label=label or here.label, threads=threads or here.threads)
    asked = _link(bandwidth, rtt, link)
    if server_speed <= 0:
        raise PlanError(f"--server-speed {server_speed:g}: a number above 0")
    training, micros = _training(loss, optimizer, batch_size), _numbers(micro_batches)
    set_threads(here)
    rows = rows_of(here, here.data, model)
    if rows is None:
        raise DataError("no sample is named: give --data rows.csv, or --party-file NAME.toml")
    with _progress() as progress:
        progress("calibrating this machine")
        overheads = calibrate()
        surveyed = survey(
            build_model(model), rows, training, named=named(codecs), micros=micros, only=_words(cuts), progress=progress
        )
    setting = Setting(line=asked(overheads), overheads=overheads, server_speed=server_speed)
    advice = advise_on(surveyed, setting, local_steps)
    _show(surveyed, advice, setting)
    if json_file is not None:
        _write_json(json_file, surveyed, advice, setting)
    if picture is not None:
        _draw(picture, surveyed, advice, f"{model}: {_line_in_words(setting.line)}")


def _link(bandwidth: str, rtt: str, link: Path | None) -> "Callable[[Overheads], Line]":
    """The link asked about, once it is known what frames cost here. Raises `PlanError`."""
    from cutlayer.studies.advisor import line_of, measured_line
    from cutlayer.studies.lines import read_bandwidth, read_measured, read_time

    if bool(bandwidth or rtt) == bool(link) or bool(bandwidth) != bool(rtt):
        raise PlanError(
            "name the link: --bandwidth 100Mbit --rtt 50ms, or --link with what `cutlayer ping --json` wrote"
        )
    if link is None:
        given = line_of(read_bandwidth(bandwidth), read_time(rtt))
        return lambda overheads: given
    measured = read_measured(link)
    return lambda overheads: measured_line(measured, overheads)


def _training(loss: str, optimizer: str, batch_size: int) -> "Training":
    """A learning rate of 0: what is measured should not depend on where the weights go. Raises `PlanError`."""
    from cutlayer.model.methods import canonical
    from cutlayer.plan.terms import Method, Training

    training, faults = canonical(
        Training(
            loss=Method(name=loss),
            optimizer=Method(name=optimizer, options={"lr": 0.0}),
            batch_size=batch_size,
            rounds=1,
            shuffle=False,
            held_out=0.0,
        )
    )
    if faults:
        raise PlanError(faults)
    return training


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdigit() and 1 <= int(word) <= MOST_MICROS for word in words):
        raise PlanError(f"--micro-batches {text!r}: whole numbers from 1 to {MOST_MICROS}, with commas between")
    return [int(word) for word in words]


@contextmanager
def _progress() -> "Iterator[Callable[[str], None]]":
    """What is being measured, on standard error where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda sentence: status.update(escape(sentence)) if console.is_terminal else None


# ---------------------------------------------------------------------- what is shown


def _show(survey: "Survey", advice: "Advice", setting: "Setting") -> None:
    from rich.console import Console

    console = Console()
    console.print(
        f"mini-batches of {survey.rows} rows; {_line_in_words(setting.line)}", highlight=False, soft_wrap=True
    )
    console.print(_places(survey))
    console.print(_speeds(survey, advice))
    for sentence in (*survey.refused, *advice.sentences()):
        console.print(escape(sentence), highlight=False, soft_wrap=True)


def _line_in_words(line: "Line") -> str:
    up, down = (8e-6 * rate for rate in (line.up_bytes_per_s, line.down_bytes_per_s))
    rates = f"{up:.4g} Mbit/s" if up == down else f"{up:.4g} Mbit/s up, {down:.4g} down"
    return f"a link of {rates}, round trip {2e3 * line.delay_s:.3g} ms"


def _places(survey: "Survey") -> "Table":
    """What each side computes and holds, and what crosses."""
    table = _table("Each cut: FLOPs a row with backward, memory for a mini-batch, bytes a row, uncompressed")
    _columns(table, ("cut after",), ("client FLOPs", "server", "client memory", "server", "bytes forward", "back"))
    for place in survey.places:
        memory = in_words(place.client_memory.total), in_words(place.server_memory.total)
        flops = _flops(place.client_flops), _flops(place.server_flops)
        table.add_row(escape(place.layer), *flops, *memory, f"{place.bytes_forward:,}", f"{place.bytes_back:,}")
    table.add_section()
    whole, nbytes = (_flops(survey.whole_flops), "", in_words(survey.whole_memory.total), ""), f"{survey.whole_bytes:,}"
    table.add_row("federated: all, a round", *whole, nbytes, nbytes)
    return table


def _flops(flops: "Operations | None") -> str:
    return "not counted" if flops is None else in_words(flops.both)


def _speeds(survey: "Survey", advice: "Advice") -> "Table":
    """Predicted steps a second: a line for each cut and codec, a column for each number of micro-batches."""
    micros = sorted({choice.micro_batches for choice in advice.choices})
    table = _table("Predicted steps/s, by number of micro-batches M; with the codec, bytes a row")
    _columns(table, ("cut after", "codec"), ("up", "down", *(f"M = {count}" for count in micros)))
    for place in survey.places:
        best = advice.best_at(place.layer)
        mine = [choice for choice in advice.choices if choice.layer == place.layer]
        for codec in dict.fromkeys(choice.codec for choice in mine):
            table.add_row(*_speed_cells(place.layer, [each for each in mine if each.codec == codec], micros, best))
            if codec == advice.best.codec and place.layer == advice.best.layer:
                table.rows[-1].style = "bold green"
    table.add_section()
    other = advice.federated
    table.add_row("federated", f"{other.local_steps} local steps", "", "", f"{other.steps_per_s:.3g}")
    return table


def _speed_cells(layer: str, choices: "Sequence[Choice]", micros: "Sequence[int]", best: "Choice") -> list[str]:
    """The cells of one line; the best of the cut bears an asterisk."""
    by_count = {choice.micro_batches: choice for choice in choices}
    speeds = [
        f"{choice.steps_per_s:.3g}{'*' if choice is best else ' '}" if (choice := by_count.get(count)) else "–"
        for count in micros
    ]
    first = choices[0]
    return [*map(escape, (layer, first.codec)), f"{first.up_bytes:,.0f}", f"{first.down_bytes:,.0f}", *speeds]


def _table(title: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _columns(table: "Table", texts: tuple[str, ...], numbers: tuple[str, ...]) -> None:
    for name in texts:
        table.add_column(name, overflow="fold", min_width=9)
    for name in numbers:
        table.add_column(name, justify="right", min_width=5)


def in_words(count: float) -> str:
    """With a unit of thousands."""
    from cutlayer.studies.flops import in_words as spelled

    return spelled(count)


def _write_json(path: Path, survey: "Survey", advice: "Advice", setting: "Setting") -> None:
    told: dict[str, Any] = {
        "setting": asdict(setting),
        "survey": asdict(survey),
        "choices": [asdict(choice) | {"steps_per_s": choice.steps_per_s} for choice in advice.choices],
        "federated": asdict(advice.federated) | {"steps_per_s": advice.federated.steps_per_s},
        "best": asdict(advice.best) | {"steps_per_s": advice.best.steps_per_s},
    }
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    except OSError as error:
        raise PlanError(f"{path} cannot be written to ({error.strerror}): choose another place with --json") from error


def _draw(path: Path, survey: "Survey", advice: "Advice", title: str) -> None:
    from cutlayer.studies.picture import draw

    if not draw(survey, advice, path, title):
        print("no picture was drawn, as it needs matplotlib: pip install 'cutlayer[plots]'")
