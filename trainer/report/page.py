"""The page: HTML around figures, table and samples. Nothing in it is loaded from elsewhere.

Names, problems and model text come from outside. In markup they are escaped; the samples are JSON
in which no `<` is left, so that nothing in them can end its script element; and a policy in the
page lets the browser run the one script written here, by its hash, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.report.figures import inline_svg
from trainer.samples import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.report.figures import Chart
    from trainer.report.library import Library
    from trainer.report.sources import Source

HERE = Path(__file__).parent
TABLE = {  # title: (key of a row, how it is written)
    "asked": ("budget", "{:,}"),
    "used": ("mean_tokens", "{:,.1f}"),
    "accuracy": ("pass1", "{:.1%}"),
    "pass@k": ("pass_k", "{:.1%}"),
    "maj@k": ("maj_k", "{:.1%}"),
    "deviation": ("deviation", "{:.1%}"),
    "of samples": ("sample_deviation", "{:.1%}"),
    "bias": ("bias", "{:+,.1f}"),
    "RMSE": ("rmse", "{:,.1f}"),
    "over": ("over", "{:.1%}"),
    "over 1.1×": ("soft_over", "{:.1%}"),
    "correlation": ("correlation", "{:.3f}"),
    "cut off": ("truncated", "{:.1%}"),
}
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render_page(sources: Sequence[Source], charts: Sequence[Chart], library: Library) -> str:
    """The whole file, UTF-8 to be."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [(title, list(group)) for title, group in groupby(charts, lambda c: c.section)]
    links = [(f"s{i}", title) for i, (title, _) in enumerate(sections)]
    links += [("table", "Table"), ("samples", "Samples")]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(' · '.join(source.name for source in sources))}</title>",
            f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            "<h1>Answers within a token budget</h1>",
            *map(_source, sources),
            "<nav>" + " ".join(f'<a href="#{to}">{escape(text)}</a>' for to, text in links),
            "</nav>",
            *(_figures(f"s{i}", *section) for i, section in enumerate(sections)),
            _table(sources),
            _samples(library),
            '<script type="application/json" id="library">',
            f"{embedded_json(library.content)}</script>",
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a <script> element: `<`, `>` and `&` are written as escapes.

    Example: ["</script>"] becomes ["\\u003c/script\\u003e"], which parses to the same.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(str.maketrans(ESCAPES))


def _source(source: Source) -> str:
    facts = clean(json.dumps(source.facts, indent=1, ensure_ascii=False))
    notes = "".join(f"<li>{escape(note)}</li>" for note in source.notes)
    return (
        f"<details><summary><b>{escape(source.name)}</b> "
        f'<span class="soft">{escape(_what(source))}</span></summary>'
        f"<pre>{escape(facts)}</pre></details>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _what(source: Source) -> str:
    if "model" in source.facts and isinstance(source.facts["model"], str):
        return clean(f"{source.facts.get('method', 'evaluation')} of {source.facts['model']}")
    return f"a training run of {len(source.metrics)} steps"


def _figures(anchor: str, title: str, charts: Sequence[Chart]) -> str:
    """A section; a caption that all its figures share stands above them, once."""
    shared = len({chart.caption for chart in charts}) == 1
    figures = []
    for chart in charts:
        caption = f"<b>{escape(chart.title)}</b>"
        caption += "" if shared else f"<span>{escape(chart.caption)}</span>"
        figures.append(f"<figure><figcaption>{caption}</figcaption>{inline_svg(chart)}</figure>")
    above = f'<p class="soft">{escape(charts[0].caption)}</p>' if shared else ""
    return (
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{above}'
        f'<div class="figures">{"".join(figures)}</div></section>'
    )


def _table(sources: Sequence[Source]) -> str:
    """All figures as text; a column nobody has is left out."""
    rows = [(m.name, row) for source in sources for m in source.methods for row in m.rows]
    columns = {
        title: column
        for title, column in TABLE.items()
        if any(row.get(column[0]) is not None for _, row in rows)
    }
    head = "".join(f"<th>{escape(title)}</th>" for title in ("method", "data", *columns))
    body = []
    for name, row in rows:
        cells = [name, str(row["data"])]
        cells += [_cell(row, key, form) for key, form in columns.values()]
        body.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    text = (
        "asked, used, bias and RMSE in tokens; deviation of mean lengths, as in the paper, and of "
        "samples; over: samples longer than asked."
    )
    content = (
        f'<p class="soft">{text}</p><div class="scroll" tabindex="0"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    missing = '<p class="soft">No evaluation in these folders.</p>'
    return f'<section id="table"><h2>Table</h2>{content if rows else missing}</section>'


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    if value is None:
        return "–"
    text = form.format(value)
    if key == "pass1" and row.get("pass1_low") is not None and row.get("pass1_high") is not None:
        text += f" [{row['pass1_low']:.1%}, {row['pass1_high']:.1%}]"
    return text


def _samples(library: Library) -> str:
    said = (
        f"{library.kept:,} of {library.found:,} samples are in this file."
        if library.found
        else "No samples in these folders."
    )
    controls = "".join(
        f'<label>{text}<select id="{name}"></select></label>'
        for name, text in (
            ("a", "A"), ("b", "B"), ("data", "data set"),
            ("verdict", "verdict"), ("order", "order"),
        )
    )  # fmt: skip
    return (
        f'<section id="samples"><h2>Samples</h2><p class="soft">{said} Thinking is pale, the '
        f'graded answer marked.</p><div id="controls">{controls}<label>search<input id="search" '
        'type="search" placeholder="words in problem, text or answer"></label></div>'
        '<p id="count" class="soft" role="status"></p><div id="cards"></div>'
        '<button id="more" hidden>Show more</button>'
        "<noscript>Samples need JavaScript; all else does not.</noscript></section>"
    )
