"""`cutlayer deal`: a dataset dealt to parties for an experiment: their files, and a picture of who has which labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutlayer.errors import PlanError
from cutlayer.plan.check import DNS_LABEL
from cutlayer.plan.document import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cutlayer.data.deal import Integers
    from cutlayer.data.factory import Pool

RECORD, PICTURE, TEST = "dealt.json", "labels.png", "test"
BARS_MOST = 10
"""Of more classes the picture is a heat map, as bars would run out of colours."""
PARTY_FILE = "# What is local to this party and nobody else's business. Paths are relative to this file.\n"
SHOWN = (12, 4)
"""Of more than 20 parties the table shows so many first and last ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A finished deal. `terms` are how it was dealt; `rows` each party's by place in the pool, `test` those of none."""

    terms: dict[str, Any]
    classes: list[str]
    rows: "dict[str, Integers]"
    test: "Integers"
    counts: "Integers"
    """Rows by party and class `[parties, classes]`."""
    variation: list[float]
    """How far each party's mix of classes is from that of all dealt rows, 0 to 1."""
    values: dict[str, list[str]]
    """Each party's values of the column that was dealt by."""
    moved: int

    @property
    def title(self) -> str:
        """How, in words."""
        if "column" in self.terms:
            return f"by column {self.terms['column']}"
        alpha = f", alpha {self.terms['alpha']:g}" if "alpha" in self.terms else ""
        return f"{self.terms['how']}{alpha}, seed {self.terms['seed']}"


def deal(  # noqa: PLR0913 (each option is one word of the experiment)
    source: Annotated[str, typer.Argument(help="rows.csv, rows.npz, digits, or package.module:factory.")],
    *,
    parties: Annotated[int, typer.Option(help="To how many; else as many as names, or values of the column.")] = 0,
    how: Annotated[str, typer.Option(help="iid, dirichlet, quantity, classes or column.")] = "iid",
    alpha: Annotated[float, typer.Option(help="Of dirichlet and quantity: near 0 uneven, 100 even.")] = 0.1,
    column: Annotated[str, typer.Option(help="The column (or array) to deal by, for --how column.")] = "",
    label: Annotated[str, typer.Option(help="The table's column of labels.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of all chance.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("dealt"),
    names: Annotated[str, typer.Option(help="The parties' names, with commas between.")] = "",
    prefix: Annotated[str, typer.Option(help="Or how their names begin.")] = "client",
    test_share: Annotated[float, typer.Option(help="Share of the rows for one common test file.")] = 0.0,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the files of an earlier deal.")] = False,
) -> None:
    """Deal a dataset to parties, evenly or not: a file for each, and a picture of who has which labels."""
    from cutlayer.data.deal import HOWS, WITH_ALPHA
    from cutlayer.data.factory import open_pool

    if how not in HOWS:
        raise PlanError(f"--how {how!r} is unknown{nearest(how, HOWS)}")
    if (how == "column") != bool(column):
        raise PlanError("--how column and --column NAME go together: give both, or neither")
    pool = open_pool(source, label=label, column=column)
    if test_share and pool.write_test:
        raise PlanError(f"{source} has a test part of its own: leave out --test-share")
    terms: dict[str, Any] = {"source": source, "how": how, "seed": seed, "test_share": test_share}
    terms |= ({"alpha": alpha} if how in WITH_ALPHA else {}) | ({"column": column} if column else {})
    terms |= {"label": label} if label else {}
    outcome = _dealt(pool, terms, names, prefix, parties)
    try:
        _write(pool, outcome, out, replace=replace)
        _show(outcome, out)
        _picture(outcome, out / PICTURE)
    except OSError as error:
        raise PlanError(f"{out} cannot be written to ({error.strerror}): choose another folder with --out") from error


def _dealt(pool: "Pool", terms: dict[str, Any], names: str, prefix: str, parties: int) -> Outcome:
    """The deal, and what it is worth, in memory."""
    from cutlayer.data import deal as deals

    classes, labels = deals.numbered(pool.labels, f"labels of {terms['source']}", most=deals.CLASSES_MOST)
    kept, test = deals.set_aside(len(labels), terms["test_share"], terms["seed"])
    texts, values = deals.numbered(pool.values or [0] * len(labels), f"values of {terms.get('column')!r}")
    listed = _names(names, prefix, parties or ("column" in terms and len(set(values[kept].tolist()))))
    alpha, seed = terms.get("alpha", deals.ALPHA), terms["seed"]
    dealt = deals.deal(terms["how"], labels[kept], len(listed), alpha=alpha, values=values[kept], seed=seed)
    rows = {name: kept[dealt.rows_of(place)] for place, name in enumerate(listed)}
    counts = dealt.counts(labels[kept], len(classes))
    held = {name: [texts[value] for value in sorted(set(values[places].tolist()))] for name, places in rows.items()}
    return Outcome(
        terms=terms,
        classes=classes,
        rows=rows,
        test=test,
        counts=counts,
        variation=deals.total_variation(counts).tolist(),
        values=held if "column" in terms else {},
        moved=dealt.moved,
    )


def _names(names: str, prefix: str, parties: int) -> list[str]:
    """The parties' names, checked as a plan checks them; `parties` is how many were asked for, or 0."""
    listed = [name.strip() for name in names.split(",")] if names else []
    if not listed and parties < 1:
        raise PlanError("it is not said to how many parties: give --parties 10, or --names hospital-a,hospital-b")
    if listed and parties not in {0, len(listed)}:
        raise PlanError(f"--names names {len(listed)} parties where there are {parties}: name each of them")
    listed = listed or [f"{prefix}-{number}" for number in range(1, parties + 1)]
    for name in listed:
        if not DNS_LABEL.fullmatch(name):
            raise PlanError(f"{name!r} cannot name a party: write small letters, digits and inner hyphens, at most 63")
        if name == TEST or listed.count(name) > 1:
            raise PlanError(f"the name {name!r} is taken: give each party another, and none the name 'test'")
    return listed


def _write(pool: "Pool", outcome: Outcome, out: Path, *, replace: bool) -> None:
    """A data file for each party, the test file, party files where there are none, and the record."""
    has_test = pool.write_test is not None or len(outcome.test) > 0
    files = {name: f"{name}{pool.ending}" for name in (*outcome.rows, *([TEST] if has_test else []))}
    _check_free(out, [*files.values(), RECORD], replace=replace)
    out.mkdir(parents=True, exist_ok=True)
    for name, places in outcome.rows.items():
        pool.write(out / files[name], places)
        if not (party_file := out / f"{name}.toml").exists():
            held_out = {"held_out": files[TEST]} if has_test else {}
            lines = {"data": files[name]} | held_out | _columns(pool, outcome) | {"keys": "keys"}
            text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in lines.items())
            party_file.write_text(PARTY_FILE + text, encoding="utf-8")
    if pool.write_test:
        pool.write_test(out / files[TEST])
    elif has_test:
        pool.write(out / files[TEST], outcome.test)
    record = json.dumps(_record(outcome, files), indent=2, ensure_ascii=False)
    (out / RECORD).write_text(record + "\n", encoding="utf-8")


def _check_free(out: Path, files: Sequence[str], *, replace: bool) -> None:
    """Raises `PlanError` if a file would be overwritten, or one of an earlier deal be left among those of this."""
    if not replace:
        if taken := [name for name in files if (out / name).exists()]:
            raise PlanError(f"{out / taken[0]} is there already: add --replace, or choose another folder with --out")
        return
    try:
        earlier = [Path(name).name for name in json.loads((out / RECORD).read_text(encoding="utf-8"))["files"].values()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return
    if left := [name for name in earlier if name not in files and (out / name).exists()]:
        raise PlanError(
            f"{out / left[0]} is of an earlier deal and would stay, its rows dealt twice: remove it, or choose another "
            "folder with --out"
        )


def _columns(pool: "Pool", outcome: Outcome) -> dict[str, Any]:
    """How a party's file reads its table: nothing for arrays; the column dealt by is no feature."""
    if not pool.columns:
        return {}
    label, column = outcome.terms["label"], outcome.terms.get("column")
    lines: dict[str, Any] = {"label": label}
    if column:
        lines["features"] = [name for name in pool.columns if name not in {label, column}]
    try:
        numbers = [float(name) for name in outcome.classes]
    except ValueError:
        numbers = []
    if all(number.is_integer() for number in numbers) and numbers != list(range(len(outcome.classes))):
        lines["classes"] = outcome.classes
    return lines


def _record(outcome: Outcome, files: dict[str, str]) -> dict[str, Any]:
    import numpy as np

    def by_class(counts: "Integers") -> dict[str, int]:
        return dict(zip(outcome.classes, counts.tolist(), strict=True))

    parties: dict[str, dict[str, Any]] = {
        name: {"rows": len(rows), "classes": by_class(counts), "total_variation": round(variation, 6)}
        for (name, rows), counts, variation in zip(outcome.rows.items(), outcome.counts, outcome.variation, strict=True)
    }
    for name, values in outcome.values.items():
        parties[name]["values"] = values
    pool = {"rows": int(outcome.counts.sum()), "classes": by_class(outcome.counts.sum(axis=0))}
    return {
        **outcome.terms,
        "moved": outcome.moved,
        "numpy": np.__version__,
        "files": files,
        **pool,
        "parties": parties,
    }


def _show(outcome: Outcome, out: Path) -> None:
    """A table of the parties, and what a person should know of this deal."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names, sizes = list(outcome.rows), outcome.counts.sum(axis=1)
    first, last = SHOWN if len(names) > 20 else (len(names), 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("party", "rows", f"classes of {len(outcome.classes)}", "total variation"):
        table.add_column(name, justify="left" if name == "party" else "right", no_wrap=name != "party")
    if outcome.values:
        table.add_column(escape(outcome.terms["column"]), no_wrap=True, overflow="ellipsis")
    for place, name in enumerate(names):
        if place == first:
            table.add_row(f"… {len(names) - first - last} more")
        if place < first or place >= len(names) - last:
            present, values = str((outcome.counts[place] > 0).sum()), ", ".join(outcome.values.get(name, []))
            cells = (name, f"{sizes[place]:,}", present, f"{outcome.variation[place]:.3f}", escape(values))
            table.add_row(*cells[: len(table.columns)])
    table.add_section()
    mean = float(sizes @ outcome.variation / sizes.sum())
    table.add_row("all", f"{sizes.sum():,}", str(len(outcome.classes)), f"{mean:.3f}", style="bold")
    console = Console()
    console.print(table)
    told = f"{outcome.title}: {sizes.min():,} to {sizes.max():,} rows a party, in {out}"
    console.print(told, soft_wrap=True, markup=False, highlight=False)
    console.print("total variation: how far a party's mix of classes is from that of all, 0 to 1", style="dim")
    if outcome.moved:
        console.print(f"moved: {outcome.moved} rows, one to each party that had drawn none, from the largest party")


def _picture(outcome: Outcome, path: Path) -> None:
    """Who has which labels: bars, or with many classes a heat map; if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture was drawn, as it needs matplotlib: pip install 'cutlayer[plots]'")
        return
    parties, classes = outcome.counts.shape
    few = parties <= 20
    width = 8.0 if classes <= BARS_MOST else min(4 + 0.13 * classes, 18)
    height = max(1.8 + (0.34 if few else 0.17) * min(parties, 220), 0.9 + 0.24 * min(classes, BARS_MOST))
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    (_bars if classes <= BARS_MOST else _heat)(axes, outcome)
    names = [_short(name) for name in outcome.rows]
    step = -(-parties // 200)
    axes.set_yticks(range(0, parties, step), names[::step], fontsize=9 if few else 7)
    axes.set_ylim(parties - 0.4, -0.6)
    axes.set_ylabel("party")
    figure.suptitle(
        f"Labels of {parties} part{'y' if parties == 1 else 'ies'}: {_short(outcome.title, 60)}", fontsize=11
    )
    figure.savefig(path)


def _bars(axes: "Axes", outcome: Outcome) -> None:
    """A bar for each party, a piece for each class."""
    ends = outcome.counts.cumsum(axis=1)
    for place, name in enumerate(outcome.classes):
        counts = outcome.counts[:, place]
        axes.barh(range(len(ends)), counts, 0.8, ends[:, place] - counts, label=_short(name), color=f"C{place}")
    axes.set_xlabel("rows")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(title="class", loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _heat(axes: "Axes", outcome: Outcome) -> None:
    """A line for each party, a field for each class; white where there is no row."""
    import numpy as np

    counts = np.ma.masked_equal(outcome.counts, 0)
    fields = axes.imshow(counts, aspect="auto", interpolation="nearest", cmap="viridis_r", norm="log")
    step = -(-len(outcome.classes) // 110)
    names = [_short(name) for name in outcome.classes]
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=7, rotation=90)
    axes.set_xlabel("class")
    axes.figure.colorbar(fields, label="rows (white: none)", format="%g", fraction=0.03, pad=0.01)


def _short(name: str, most: int = 24) -> str:
    """A name as matplotlib writes it: no formula, and no leading `_`, which would hide it."""
    name = " ".join(name.split())
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")
