"""The figures of a report: what is shown of whom. trainer/charts.py draws them."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from trainer import charts
from trainer.charts import MARKERS, PALETTE, Curve
from trainer.plots import DPI
from trainer.samples import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from trainer.report.sources import Method, Source

    Plan = Iterator[tuple[str, str, str, Callable[[Axes], None]]]

SIZE = (4.4, 3.4)  # inches: text of 10 points is still legible when scaled to a phone's width
LEGEND_LINE = 0.2  # inches more for each name in a legend below the axes
LONGEST_NAME = 40  # characters in a legend
DEVIATIONS = (  # figure of a row, section, caption
    (
        "deviation",
        "Length deviation by budget",
        "|mean used − asked| / asked: what the paper reports. Errors that cancel are forgiven.",
    ),
    (
        "sample_deviation",
        "Length deviation of samples by budget",
        "|used − asked| / asked of each sample, then the mean.",
    ),
)
# A name from outside is never a formula, and the letters of the SVG stay letters.
PLAIN = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "report"}


@dataclass(frozen=True)
class Chart:
    """A figure with what the page says about it. `file` is its name without a suffix."""

    section: str
    title: str
    caption: str
    file: str
    figure: Figure


def draw_charts(sources: Sequence[Source]) -> list[Chart]:
    """Every figure the sources have data for, in the order of the page."""
    looks = _looks(sources)
    charts_of_page = []
    with matplotlib.rc_context(PLAIN):
        for section, title, caption, draw in _plan(sources, looks):
            figure = Figure(figsize=SIZE, layout="constrained")
            axes = figure.subplots()
            draw(axes)
            axes.set_title("", loc="left")  # the page has it as text
            lines = sum(len(legend.get_texts()) for legend in figure.legends)
            figure.set_figheight(SIZE[1] + LEGEND_LINE * lines)
            file = _slug(f"{section} {title}", {chart.file for chart in charts_of_page})
            charts_of_page.append(Chart(section, title, caption, file, figure))
    return charts_of_page


def save_png(chart: Chart, folder: Path) -> None:
    """Write the figure under its title as FOLDER/FILE.png. Raises OSError."""
    with matplotlib.rc_context(PLAIN):
        axes = chart.figure.axes[0]
        title = f"{chart.section}\n{_short(chart.title)}"
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        chart.figure.savefig(folder / f"{chart.file}.png", dpi=DPI)
        axes.set_title("", loc="left")


def inline_svg(chart: Chart) -> str:
    """The figure as an <svg> element for HTML: no size, ids of its own, colours of the page."""
    for text in chart.figure.findobj(Text):
        text.set_path_effects([])  # they turn letters into outlines; the page draws its own halo
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(PLAIN):
        chart.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1
    )
    for mark in (' id="', "url(#", 'xlink:href="#'):  # figures of one page share a name space
        svg = svg.replace(mark, f"{mark}{chart.file}-")
    themed = {colour: f"var(--c{i})" for i, colour in enumerate((*PALETTE[:-1], charts.GREY))}
    themed |= {PALETTE[-1]: "currentColor", "#ffffff": "var(--page)", charts.NOTE: "var(--soft)"}
    for colour, name in themed.items():
        svg = svg.replace(colour.lower(), name)
    return svg


def _plan(sources: Sequence[Source], looks: dict[str, tuple[str, str]]) -> Plan:
    """Section, title, caption, and what draws it."""
    methods = [method for source in sources for method in source.methods]
    data_sets = list(dict.fromkeys(row["data"] for method in methods for row in method.rows))
    for data in data_sets:
        curves = [_curve(method, looks, data) for method in methods]
        yield (
            "Accuracy against tokens used",
            str(data),
            "A marker for each budget, logarithmic axis; bars are the intervals of the evaluation, "
            "where it gives them.",
            partial(charts.draw_accuracy, curves=curves, log=True),
        )
    for source in sources:
        curves = [_curve(method, looks) for method in source.methods if method.used]
        if curves:
            yield (
                "Requested against used tokens",
                source.name,
                "Line: median of the samples; band: the middle 80%. All data sets together.",
                partial(charts.draw_requested_against_used, curves=curves),
            )
    for key, section, caption in DEVIATIONS:
        for data in data_sets:
            lines = [(_short(m.name), *looks[m.name], _by_budget(m, data, key)) for m in methods]
            if any(values for *_, values in lines):
                draw = partial(_draw_shares, lines=lines)
                yield section, str(data), caption, draw
    yield from _plan_training(sources)
    yield from _plan_behaviour(methods)


def _plan_training(sources: Sequence[Source]) -> Plan:
    """Reward terms first, then the other panels of a run's own picture."""
    titles = sorted(charts.PANELS, key=lambda title: title != "Reward terms")
    for source in sources:
        for title in titles if source.metrics else ():
            yield (
                "Training",
                f"{title} · {source.name}",
                f"Pale: each step; bold: running mean of {charts.SMOOTH} steps.",
                partial(_draw_steps, metrics=source.metrics, title=title),
            )


def _plan_behaviour(methods: Sequence[Method]) -> Plan:
    for method in methods:
        rates = behaviour_rates(method.rows)
        if rates:
            looks = [
                (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i in range(len(rates))
            ]
            lines = [
                (_short(clean(str(name))), *look, values)
                for (name, values), look in zip(rates.items(), looks, strict=True)
            ]
            yield (
                "Behaviour by budget",
                method.name,
                "Occurrences per 1,000 tokens, all data sets together.",
                partial(charts.draw_by_budget, title="", lines=lines),
            )


def behaviour_rates(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """{name: {budget: occurrences per 1,000 tokens}}, pooled over data sets.

    A rate weighs as much as the tokens it was counted in, so the pooled one is that of all texts.

    Example: 2 per 1,000 in 300 tokens and 6 in 100 are 3.
    """
    sums: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        tokens = (row.get("n") or 1) * (row["mean_tokens"] or 0.0) * (row.get("problems") or 1)
        for name, rate in (row.get("behaviour") or {}).items():
            if row["budget"] and tokens and rate is not None:
                total = sums.setdefault((name, row["budget"]), [0.0, 0.0])
                total[0] += rate * tokens
                total[1] += tokens
    rates: dict[str, dict[int, float]] = {}
    for (name, budget), (occurrences, tokens) in sums.items():
        rates.setdefault(name, {})[budget] = occurrences / tokens
    return rates


def _draw_shares(axes: Axes, lines: Sequence[tuple]) -> None:
    charts.draw_by_budget(axes, "", lines)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_steps(axes: Axes, metrics: Sequence[dict[str, Any]], title: str) -> None:
    charts.draw_over_steps(axes, metrics, title)
    axes.set_xlabel("step")


def _looks(sources: Sequence[Source]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in every figure; grey is what came before."""
    looks, rest = {}, 0
    for method in (method for source in sources for method in source.methods):
        if method.name.startswith("before"):
            looks[method.name] = (charts.GREY, "s")
        else:
            looks[method.name] = (PALETTE[rest % len(PALETTE)], MARKERS[rest % len(MARKERS)])
            rest += 1
    return looks


def _curve(method: Method, looks: dict[str, tuple[str, str]], data: str | None = None) -> Curve:
    names = {"accuracy": "pass1", "low": "pass1_low", "high": "pass1_high"}
    cells = [
        {key: row.get(names.get(key, key)) for key in ("budget", "mean_tokens", *names)}
        for row in method.rows
        if row["data"] == data
    ]
    return Curve(_short(method.name), *looks[method.name], cells, method.used)


def _by_budget(method: Method, data: str, key: str) -> dict[int, float]:
    rows = [row for row in method.rows if row["data"] == data and row["budget"]]
    return {row["budget"]: row[key] for row in rows if row.get(key) is not None}


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _slug(text: str, taken: set[str]) -> str:
    """A file name of letters, digits and hyphens that is not taken yet."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
    names = (slug if number == 1 else f"{slug}-{number}" for number in count(1))
    return next(name for name in names if name not in taken)
