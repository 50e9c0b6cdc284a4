"""Samples of one or several runs as JSON, as a table in Markdown and as a chart.

Called by `__main__`. A figure is the median over all samples of a row; its spread is from the least
to the most. Runs of different scales do not mix: a figure of a larger directory is another figure.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.comparison.work import MIB, ROWS, Row

FIRST = ("pydi-2", "pydi-3", "pydi-2-fsync")  # whose rates the others are compared with
MARKERS = {
    "pydi-2": "o", "pydi-3": "s", "pydi-2-fsync": "D", "gluster": "^", "moosefs": "v", "plain": "x",
}  # fmt: skip

KINDS = ("comparison", "growth")

Run = dict[str, Any]


def load(paths: Sequence[Path]) -> list[Run]:
    """Runs that fit together. SystemExit names the file that does not."""
    runs: list[Run] = []
    for path in paths:
        try:
            run = json.loads(path.read_text())
            nature = (run["kind"], run["scale"])
            fits = nature[0] in KINDS if not runs else nature == (runs[0]["kind"], runs[0]["scale"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise SystemExit(f"compare: {path} is no run of scripts/compare: {exc}") from exc
        if not fits:
            raise SystemExit(f"compare: {path} is a run of another kind or scale")
        runs.append(run)
    return runs


def table(runs: Sequence[Run]) -> str:
    """Everything about these runs that a reader should know, in Markdown."""
    parts = (_machine, _systems, _rates, _costs, _pauses)
    return "\n\n".join(text for part in parts if (text := "\n".join(part(runs)))) + "\n"


def chart(runs: Sequence[Run], path: Path) -> None:
    """How many times faster or slower than PyDi each system is, row by row; SVG."""
    plot = pyplot()
    names = _names(runs)
    base = next((name for name in (*FIRST, *names) if name in names), names[0])
    rows = [row for row in ROWS if _seconds(runs, row, base)]
    figure, axes = plot.subplots(figsize=(9, 1.5 + 0.28 * len(rows)), layout="constrained")
    for name in names:
        points = [
            (statistics.median(_seconds(runs, row, base)) / statistics.median(seconds), -number)
            for number, row in enumerate(rows)
            if (seconds := _seconds(runs, row, name))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), MARKERS.get(name, "o"), label=name, alpha=0.8)
    axes.set_xscale("log")
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_yticks([-n for n in range(len(rows))], [row.title for row in rows])
    axes.set_xlabel(f"times as fast as {base}: further right is faster")
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.08), ncols=len(names))
    figure.savefig(path, metadata={"Date": None})
    plot.close(figure)


def pyplot() -> Any:
    """matplotlib's, for files that are the same when their figures are."""
    import matplotlib  # only now: measuring needs none of it

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pydi"
    from matplotlib import pyplot as found

    return found


def machine(run: Run) -> str:
    """One line: when, on what, how busy."""
    found = run["machine"]
    loads = f"{found['load_before']:.1f}, {found['load_after']:.1f}"
    return (
        f"Run of {run['started']}: {found['cpus']} CPUs ({found['model']}), {found['memory_gib']}"
        f" GiB, Linux {found['kernel']}, {found['disk']}, Python {found['python']}. Load average of"
        f" the last minute before and after: {loads}; the programs of a run alone make some 2."
    )


# --- parts of the table --------------------------------------------------------------------------


def _machine(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        yield f"- Scale {run['scale']:g}, rounds: {run['rounds']}. {machine(run)}"
        if run["skipped"]:
            yield "  Left out: " + "; ".join(f"{k}: {v}" for k, v in run["skipped"].items()) + "."


def _systems(runs: Sequence[Run]) -> Iterator[str]:
    yield "| system | version | copies | what is on disk when a call returns |"
    yield "|---|---|---|---|"
    known = {system["name"]: system for run in runs for system in run["systems"]}
    for system in known.values():
        yield "| {name} | {version} | {copies} | {durability} |".format(**system)


def _rates(runs: Sequence[Run]) -> Iterator[str]:
    yield from _table(runs, "median (least to most)", _rate)


def _costs(runs: Sequence[Run]) -> Iterator[str]:
    yield "CPU time of all daemons together, in ms for each operation or MiB, or for the whole:"
    yield ""
    yield from _table(runs, "CPU ms", _cpu)
    yield ""
    yield "Most memory (proportional set size) of all daemons together after any row:"
    yield ""
    for name in _names(runs):
        found = [s["memory_bytes"] for run in runs for s in run["samples"] if s["system"] == name]
        if most := max(found, default=0):
            yield f"- {name}: {most / MIB:.0f} MiB"


def _pauses(runs: Sequence[Run]) -> Iterator[str]:
    pauses = [pause for run in runs for pause in run["pauses"]]
    if not pauses:
        return
    yield "Longest pause of a program after `kill -9` of everything of one server but the mount:"
    yield ""
    yield "| system | server | save with fsync | read, not cached | failed calls |"
    yield "|---|---|---|---|---|"
    for system, server in dict.fromkeys((p["system"], p["server"]) for p in pauses):
        found = [p for p in pauses if (p["system"], p["server"]) == (system, server)]
        cells = [
            f"{statistics.median(p[key] for p in found):.2f} s" for key in ("write_s", "read_s")
        ]
        errors = max(p["errors"] for p in found)
        yield f"| {system} | {server} | {cells[0]} | {cells[1]} | {errors} |"


def _table(
    runs: Sequence[Run], head: str, cell: Callable[[Row, list[dict[str, Any]]], str]
) -> Iterator[str]:
    names = _names(runs)
    yield f"| {head} | unit | {' | '.join(names)} |"
    yield "|---" * (len(names) + 2) + "|"
    for row in ROWS:
        by_name = {name: _samples(runs, row, name) for name in names}
        if any(by_name.values()):
            cells = [cell(row, samples) if samples else "" for samples in by_name.values()]
            yield f"| {row.title} | {row.unit} | {' | '.join(cells)} |"


def _rate(row: Row, samples: list[dict[str, Any]]) -> str:
    values = sorted(_value(row, sample) for sample in samples)
    text = _digits(statistics.median(values))
    return f"{text} ({_digits(values[0])} to {_digits(values[-1])})" if len(values) > 1 else text


def _cpu(row: Row, samples: list[dict[str, Any]]) -> str:
    def each(sample: dict[str, Any]) -> float:
        amount = sample["amount"] / (MIB if row.unit == "MiB/s" else 1)
        return float(sample["cpu_seconds"] * 1000 / amount)

    return _digits(statistics.median(map(each, samples)))


# --- samples -------------------------------------------------------------------------------------


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(system["name"] for run in runs for system in run["systems"]))


def _samples(runs: Sequence[Run], row: Row, name: str) -> list[dict[str, Any]]:
    return [
        sample
        for run in runs
        for sample in run["samples"]
        if (sample["system"], sample["row"]) == (name, row.key)
    ]


def _seconds(runs: Sequence[Run], row: Row, name: str) -> list[float]:
    return [sample["seconds"] for sample in _samples(runs, row, name)]


def _value(row: Row, sample: dict[str, Any]) -> float:
    if row.unit == "s":
        return float(sample["seconds"])
    amount = sample["amount"] / (MIB if row.unit == "MiB/s" else 1)
    return float(amount / sample["seconds"])


def _digits(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
