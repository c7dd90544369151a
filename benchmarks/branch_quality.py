"""What branches learn under every layout: held-out loss on real rows with the bundled base, one factor moved at a time, three seeds.

Not a race of programs but of settings. The centre is ratio 0.5, a stride that turns neighbours by 0.3 rad, `replace`, 8 branches a sample
and rank 8, once isolated and once columnar. From there one factor moves: the ratio, the stride (turns of about 0.05, 0.3 and 1.5 rad), the
positions, the branches of a sample, the rank. For columnar branches ratio and number are crossed, and the ratios are tried on short
branches, too: that is what the older advice is about. All settings read equal rows and learn as many branches
(benchmarks/branch_quality_runs.py). The bundled base has read texts of these kinds; held out they are from the adapter alone.

    python -m benchmarks branch_quality --data KIND=FILE ... --work FOLDER --out FILE

Every run's figures are appended to `runs.jsonl` in `--work`: the same command goes on where it was stopped. Beside the loss after training
stand the base's own under the same layout, and its loss on plain trunks: what positions that were replaced cost by themselves.

`--tables FILE` measures nothing: it writes the tables and the picture of docs/branches.md from a result.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

from stylora.errors import UserError
from stylora.run.demo import shipped_folder
from stylora.samples.branch_settings import Visibility
from stylora.train.logs import append_line, read_lines

from . import branch_quality_runs as runs
from .branch_quality_runs import Job, Setting
from .report import ROOT, Json, with_tables

PAGE, PICTURE = ROOT / "docs/branches.md", ROOT / "docs/branches.svg"
THETA, PAIRS = 1e4, 32  # of the bundled base: pair i turns by THETA ** (-i / PAIRS) rad a position
BOTH: tuple[Visibility, ...] = ("isolated", "columnar")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values of each factor, and how much is learned.

    turns: rad, at ratio 0.5; tokens: of a branch, at most; short: of short ones, None to leave them out
    rows: of each kind, at most; learned: branches of an optimizer step
    """

    ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    turns: tuple[float, ...] = (0.05, 0.3, 1.5)
    counts: tuple[int, ...] = (1, 2, 4, 8)
    ranks: tuple[int, ...] = (4, 8, 16, 32)
    tokens: int = 64
    short: int | None = 24
    rows: int = 240
    steps: int = 40
    learned: int = 24
    learning_rate: float = 4e-3

    @property
    def centre(self) -> Setting:
        return Setting(visibility="isolated", ratio=0.5, stride=stride(0.3), positions="replace", count=8, r=8, tokens=self.tokens)


QUICK = Grid(ratios=(0.0, 0.5), turns=(0.3,), counts=(2, 8), ranks=(8,), short=None, rows=16, steps=2, learned=8)


def stride(turn: float, ratio: float = 0.5) -> int:
    """The stride that turns the fastest chosen pair of the bundled base by about so much."""
    return max(1, round(turn * THETA ** ((PAIRS - round(ratio * PAIRS)) / PAIRS)))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this comparison; the defaults are the example rows, so that it runs anywhere."""
    examples = [f"{file.stem}={file}" for file in sorted((shipped_folder() / "examples/branches").glob("*.jsonl"))]
    parser.add_argument("--data", nargs="+", default=examples, metavar="KIND=FILE", help="rows with main and branches, a file of each kind")
    parser.add_argument("--work", type=Path, help="folder for rows and figures, to go on from; by default a temporary one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=Grid().steps, help="optimizer steps of 24 branches")
    parser.add_argument("--processes", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="measure nothing: write the page's tables and picture from this result")


def run(options: argparse.Namespace) -> Json:
    """{"settings", "rows", "ratios", "notes"}: a row of every setting, figures as mean and spread over seeds."""
    if options.tables is not None:
        if not options.tables.is_file():
            raise UserError("--tables", got=str(options.tables), expected="a result of this comparison", do="make one with --out")
        result = json.loads(options.tables.read_text(encoding="utf-8"))
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
        draw(result["rows"], PICTURE)
        return result
    grid, seeds = (QUICK, options.seeds[:1]) if options.quick else (Grid(steps=options.steps), options.seeds)
    files = named(options.data)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        lengths = [grid.tokens] + ([grid.short] if grid.short else [])
        written = runs.write_rows(files, work / "rows", most=grid.rows, tokens=lengths, counts=grid.counts)
        figures = carried_out(jobs(grid, seeds, written), work / "runs.jsonl", options.processes)
    rows = table(design(grid), seeds, figures)
    return {"settings": asdict(grid) | {"seeds": seeds, "rows_of": written["rows"]}, "rows": rows, "ratios": best(rows), "notes": NOTES}


def named(data: Sequence[str]) -> dict[str, Path]:
    """KIND=FILE words. Raises UserError for a word without a kind."""
    pairs = [word.partition("=") for word in data]
    wrong = next((word for word, (kind, equals, path) in zip(data, pairs, strict=True) if not (kind and equals and path)), None)
    if wrong is not None:
        raise UserError("--data", got=wrong, expected="KIND=FILE, such as statutes=statutes.jsonl, one for each kind of rows")
    return {kind: Path(path) for kind, _, path in pairs}


# ------------------------------------------------------------------------------------------------------------- design


def design(grid: Grid) -> list[Setting]:
    """Every setting once: both centres with one factor moved, then ratio by number of branches, then ratios on short branches."""
    found: list[Setting] = []
    for visibility in BOTH:
        centre = replace(grid.centre, visibility=visibility)
        found += [centre, *(replace(centre, ratio=ratio) for ratio in grid.ratios)]
        found += [replace(centre, stride=stride(turn)) for turn in grid.turns]
        found += [replace(centre, positions="add"), *(replace(centre, count=count) for count in grid.counts)]
        found += [replace(centre, r=r) for r in grid.ranks]
        found += [replace(each, positions="add") for each in turned(grid, centre)]
    columnar = replace(grid.centre, visibility="columnar")
    found += [replace(columnar, ratio=ratio, count=count) for count in grid.counts if count > 1 for ratio in grid.ratios]
    found += [replace(columnar, ratio=ratio, tokens=grid.short) for ratio in grid.ratios if grid.short is not None]
    return list(dict.fromkeys(found))


def turned(grid: Grid, centre: Setting) -> list[Setting]:
    """Settings whose neighbours are turned far apart, by their stride or by faster pairs: there `add` is tried, too."""
    by_stride = [replace(centre, stride=stride(turn)) for turn in grid.turns if turn > 1]
    return by_stride + [replace(centre, ratio=ratio) for ratio in grid.ratios if 0.5 < ratio < 1]


def jobs(grid: Grid, seeds: Sequence[int], written: Json) -> Iterator[Job]:
    """A run of every setting and seed, whole settings first. The base's own losses are measured with the first seed alone."""
    for seed in seeds:
        for setting in design(grid):
            held = written["held"][setting.tokens]
            yield Job(
                setting=setting, seed=seed, train=written["train"][setting.tokens], held=held[setting.count]["path"],
                whole=held[max(grid.counts)]["path"], kinds=tuple(held[setting.count]["kinds"]), steps=grid.steps, learned=grid.learned,
                learning_rate=grid.learning_rate, before=seed == seeds[0],
            )  # fmt: skip


def carried_out(wanted: Iterator[Job], log: Path, processes: int) -> list[Json]:
    """The figures of every run, those in `log` as they are, the others computed and appended to it as they come."""
    asked = {job.key: job for job in wanted}
    done = {row["key"]: row for row in read_lines(log)} if log.is_file() else {}
    missing = [job for key, job in asked.items() if key not in done]
    for number, row in enumerate(_computed(missing, processes), 1):
        append_line(log, row)
        done[row["key"]] = row
        loss = row["after"]["branches"]
        print(f"{number} of {len(missing)}  {row['seconds']:.0f} s  {loss:.3f}  {row['setting']}", file=sys.stderr, flush=True)
    return [done[key] for key in asked]


def _computed(missing: Sequence[Job], processes: int) -> Iterator[Json]:
    if processes < 2:
        yield from map(runs.run, missing)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=runs.one_thread) as pool:
        for future in as_completed([pool.submit(runs.run, job) for job in missing]):
            yield future.result()


# -------------------------------------------------------------------------------------------------------------- table


def table(settings: Sequence[Setting], seeds: Sequence[int], figures: Sequence[Json]) -> list[Json]:
    """A row of every setting: the base's losses under its layout, and those after training with their spread over seeds."""
    by = {(json.dumps(each["setting"], sort_keys=True), each["seed"]): each for each in figures}
    rows = []
    for setting in settings:
        own = [by[json.dumps(asdict(setting), sort_keys=True), seed] for seed in seeds]
        after = [each["after"]["branches"] for each in own]
        kinds = {name: mean(each["after"][name] for each in own) for name in own[0]["after"] if name not in ("branches", "trunks")}
        rows.append({
            **asdict(setting), "turn": own[0]["turn"], "before": own[0]["before"]["branches"], "loss": mean(after), "spread": spread(after),
            "trunks_before": own[0]["before"]["trunks"], "trunks": mean(each["after"]["trunks"] for each in own), "kinds": kinds,
            "losses": after, "tokens_read": own[0]["tokens_read"], "seconds": mean(each["seconds"] for each in own),
        })  # fmt: skip
    return rows


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return stdev(values) if len(values) > 1 else 0.0


def of(rows: Sequence[Json], **wanted: object) -> list[Json]:
    """Rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def one_moved(rows: Sequence[Json], visibility: str, factor: str) -> list[Json]:
    """Rows of one visibility that differ from the centre in this factor alone, by its value."""
    centre = asdict(Grid().centre) | {"visibility": visibility}
    del centre[factor]
    return sorted(of(rows, **centre), key=lambda row: row[factor])


def best(rows: Sequence[Json]) -> dict[str, float]:
    """The ratio with the lowest loss, for every number of columnar branches, for short ones, and for isolated ones."""
    found = {}
    for name, own in groups(rows).items():
        if own:
            found[f"best_ratio_{name}"] = min(own, key=lambda row: row["loss"])["ratio"]
    return found


def groups(rows: Sequence[Json]) -> dict[str, list[Json]]:
    """Rows that differ in their ratio alone: the isolated ones, then the columnar ones by number, then short ones.

    A single columnar branch has nobody to see: it is the isolated one."""
    centre = Grid().centre
    fixed = {"stride": centre.stride, "positions": centre.positions, "r": centre.r}
    columnar = of(rows, visibility="columnar", **fixed)
    found = {"isolated": one_moved(rows, "isolated", "ratio")}
    for count in sorted({row["count"] for row in columnar if row["count"] > 1}):
        found[f"columnar_{count}"] = of(columnar, count=count, tokens=centre.tokens)
    found["columnar_short"] = [row for row in columnar if row["tokens"] < centre.tokens]
    return {name: sorted(own, key=lambda row: row["ratio"]) for name, own in found.items()}


def margin(one: Json, other: Json) -> str:
    """How much more one loses than the other, seed by seed: mean and spread."""
    apart = [a - b for a, b in zip(one["losses"], other["losses"], strict=True)]
    return f"{mean(apart):+.3f} ± {spread(apart):.3f}"


NOTES = [
    "loss: nats a token of held-out branches and their stop tokens, each setting under its own layout; before: of the base; spread: "
    "standard deviation over seeds",
    "trunks: next-token loss on the held-out trunks as plain text under the same positions, which `replace` changes for the base, too",
    "turn: rad between neighbouring branches on the fastest pair that carries the coordinate; above 3.14 it wraps",
    "every setting is measured on the same held-out branches; a row with more branches than the setting's is read as several",
]


# --------------------------------------------------------------------------------------------- what the page quotes

FACTORS = {"ratio": "ratio", "stride": "stride", "positions": "positions", "count": "branches a sample", "r": "rank"}


def tables(result: Json) -> dict[str, str]:
    """Marker -> one factor at a time; ratio by number of branches; the older advice held against both."""
    rows = result["rows"]
    machine, settings = result["hardware"], result["settings"]
    where = (
        f"{len(settings['seeds'])} seeds, {settings['steps']} steps of {settings['learned']} branches, rows: "
        + ", ".join(f"{count} {kind}" for kind, count in settings["rows_of"].items())
        + f". {machine['cores']} cores of an {machine['cpu']}, torch {result['versions']['torch']}, "
        + ("`--quick`." if result["quick"] else "the full setting.")
    )
    return {"QUALITY": "\n".join([*_factors(rows), "", where]), "TURNED": "\n".join(_turned(rows)), "CROSS": "\n".join(_cross(rows)),
            "ADVICE": "\n".join(_advice(rows))}


def _factors(rows: Sequence[Json]) -> list[str]:
    lines = ["| | | turn | isolated, base | isolated | columnar, base | columnar | trunks, base | trunks, isolated |", "|---" * 9 + "|"]
    for factor, name in FACTORS.items():
        pairs = zip(*(one_moved(rows, visibility, factor) for visibility in BOTH), strict=True)
        for alone, columnar in pairs:
            value = alone[factor] if isinstance(alone[factor], str) else f"{alone[factor]:g}"
            lines.append(
                f"| {name} | {value} | {alone['turn']:.2g} | {alone['before']:.3f} | {_cell(alone)} | {columnar['before']:.3f} "
                f"| {_cell(columnar)} | {alone['trunks_before']:.3f} | {alone['trunks']:.3f} |"
            )
    return lines


def _turned(rows: Sequence[Json]) -> list[str]:
    lines = ["| ratio | stride | turn | positions | isolated | columnar | trunks, base | trunks, columnar |", "|---" * 8 + "|"]
    for setting in turned(Grid(), Grid().centre):
        for positions in ("replace", "add"):
            same = asdict(setting) | {"positions": positions}
            (alone,), (columnar,) = (of(rows, **same | {"visibility": visibility}) for visibility in BOTH)
            lines.append(
                f"| {setting.ratio:g} | {setting.stride} | {alone['turn']:.2g} | {positions} | {_cell(alone)} | {_cell(columnar)} "
                f"| {columnar['trunks_before']:.3f} | {columnar['trunks']:.3f} |"
            )
    return lines


def _cross(rows: Sequence[Json]) -> list[str]:
    found = {name: own for name, own in groups(rows).items() if name != "isolated" and own}
    ratios = [row["ratio"] for row in next(iter(found.values()))]
    head = " | ".join(f"ratio {ratio:g}" for ratio in ratios)
    lines = [f"| columnar branches a sample | {head} |", "|---" * (len(ratios) + 1) + "|"]
    for name, own in found.items():
        lowest = min(row["loss"] for row in own)
        cells = [f"**{_cell(row)}**" if row["loss"] == lowest else _cell(row) for row in own]
        which = f"{own[0]['count']}" + (f", of at most {own[0]['tokens']} tokens" if name == "columnar_short" else "")
        lines.append(f"| {which} | {' | '.join(cells)} |")
    return lines


def _cell(row: Json) -> str:
    return f"{row['loss']:.3f} ± {row['spread']:.3f}"


def _advice(rows: Sequence[Json]) -> list[str]:
    """The older advice, what was best here, and what its own value costs against that."""
    found = groups(rows)
    counts = [int(name.removeprefix("columnar_")) for name, own in found.items() if own and name not in ("isolated", "columnar_short")]
    many, few = found.get("columnar_short") or found[f"columnar_{max(counts)}"], found[f"columnar_{min(c for c in counts if c > 1)}"]
    lines = ["| the older advice | best here | what the advice costs against it, nats a token |", "|---|---|---|"]
    for what, own, advised in (("many branches, short: ratio 0.6-0.7", many, 0.65), ("few branches, long: ratio 0.3-0.4", few, 0.35)):
        lowest, near = min(own, key=lambda row: row["loss"]), min(own, key=lambda row: abs(row["ratio"] - advised))
        which = f"{own[0]['count']} branches of at most {own[0]['tokens']} tokens"
        lines.append(f"| {what} | {which}: {lowest['ratio']:g} | at {near['ratio']:g}: {margin(near, lowest)} |")
    ranks = one_moved(rows, "columnar", "r")
    lowest = min(ranks, key=lambda row: row["loss"])
    told = ", ".join(f"at {row['r']}: {margin(row, lowest)}" for row in ranks if row["r"] in (4, 8))
    return [*lines, f"| rank 4-8 for a base below 1B | {lowest['r']} | {told} |"]


def draw(rows: Sequence[Json], path: Path) -> None:
    """Held-out loss over the ratio, over the ratio by number of columnar branches, and over the turn between neighbours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stylora", "font.size": 10}):
        figure, panels = plt.subplots(1, 3, figsize=(14.4, 4.2))
        ratio, number, turn = panels
        for colour, visibility in zip(("C0", "C1"), BOTH, strict=True):
            _line(ratio, one_moved(rows, visibility, "ratio"), "ratio", visibility, colour)
            _line(turn, one_moved(rows, visibility, "stride"), "turn", visibility, colour)
        for place, (name, own) in enumerate((name, own) for name, own in groups(rows).items() if own and name != "isolated"):
            label = f"{own[0]['count']} branches" + (f" of at most {own[0]['tokens']} tokens" if name == "columnar_short" else "")
            _line(number, own, "ratio", label, f"C{place + 2}")
        for panel, title, below in ((ratio, "8 branches a sample", "rope_2d_ratio"), (number, "columnar, by number", "rope_2d_ratio"),
                                    (turn, "stride, at ratio 0.5", "turn between neighbours, rad")):  # fmt: skip
            panel.set(title=title, xlabel=below, ylabel="held-out loss, nats a token")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
        turn.set_xscale("log")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _line(panel, rows: Sequence[Json], across: str, label: str, colour: str) -> None:  # type: ignore[no-untyped-def]
    assert all(math.isfinite(row["loss"]) for row in rows)
    panel.errorbar([row[across] for row in rows], [row["loss"] for row in rows], [row["spread"] for row in rows], fmt="o-", color=colour,
                   capsize=2, markersize=4, label=label)  # fmt: skip
