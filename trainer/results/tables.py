"""The tables of docs/results.md, from rows of evaluations and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from trainer.embedded.outside import OUTSIDE
from trainer.embedded.task import NUMBERS, TERMS
from trainer.progress import show
from trainer.results.claims import Claim, Rows

METHODS = {
    "base": "base model, no budget",
    "base_prompted": "base model, budget in its prompt",
    "truncate": "base model, cut at the budget",
    "s1": "base model, S1 budget forcing",
    "l1_exact": "**L1-Exact**",
    "l1_max": "**L1-Max**",
}
TRAINED = ("l1_exact", "l1_max")  # these differ from training seed to training seed
SPREAD = {"mean_tokens": ".1f", "pass1": ".1%", "deviation": ".1%", "over": ".1%"}
ROW = ("asked", "used", "right", "95%", "deviation", "RMSE", "bias", "over", "> 1.1x", "cut off")

Methods = Mapping[str, Rows]


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column may have an empty name."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def claim_table(verdicts: Sequence[Sequence[Claim]]) -> str:
    """Every claim with its verdict for each training seed, then the figures behind them."""
    lines, figures = [], []
    for claims in zip(*verdicts, strict=True):
        met = sum(claim.met for claim in claims)
        each = ["met" if claim.met else "**not met**" for claim in claims]
        number = str(claims[0].number)
        lines.append([number, claims[0].text, f"**{met} of {len(claims)}**", *each])
        figures += [f"- {number}, seed {s}: {c.evidence}" for s, c in enumerate(claims)]
    columns = ["", "claim", "met by", *(f"seed {seed}" for seed in range(len(verdicts)))]
    shown = "\n".join(figures)
    return f"## The claims\n\n{table(columns, lines)}\n\nThe figures behind them:\n\n{shown}"


def budget_table(seeds: Sequence[Methods]) -> str:
    """Methods against budgets, accuracy and tokens used; `seeds`: methods by training seed."""
    named = {title: [of[name] for of in seeds] for name, title in METHODS.items() if name != "base"}
    known = {name: seeds[0][name][0]["correlation"] for name in METHODS}
    listed = [f"{METHODS[name]} {value:.3f}" for name, value in known.items() if value is not None]
    (free,) = seeds[0]["base"]
    return "\n\n".join(
        (
            "## Methods and budgets",
            f"Right, then tokens used.{_of(len(seeds))} The base model without a budget: "
            f"{free['pass1']:.1%}, {free['mean_tokens']:.1f}.",
            _by_budget(named),
            f"Correlation of used with requested tokens, seed 0: {', '.join(listed)}.",
        )
    )


def _by_budget(named: Mapping[str, Sequence[Rows]]) -> str:
    """`named`: the rows of each training seed by what their line is called."""
    lines = []
    for title, seeds in named.items():
        cells = []
        for rows in zip(*seeds, strict=True):
            used = statistics.mean(row["mean_tokens"] for row in rows)
            cells.append(f"{_spread([row['pass1'] for row in rows], '.1%')}, {used:.1f}")
        lines.append([title, *cells])
    budgets = [row["budget"] for row in next(iter(named.values()))[0]]
    return table(["", *(f"{budget} asked" for budget in budgets)], lines)


def between_table(seeds: Sequence[Methods]) -> str:
    """L1-Exact and L1-Max at budgets that no claim is judged by; methods by training seed."""
    named = {METHODS[name]: [of[f"{name}_between"] for of in seeds] for name in TRAINED}
    best = zip(*named[METHODS["l1_max"]], strict=True)
    over = [_spread([row["over"] for row in rows], ".1%") for rows in best]
    return "\n".join(
        (
            "## Other budgets, not judged\n",
            f"As above, and the share of L1-Max's samples over the limit.{_of(len(seeds))}\n",
            _by_budget(named),
            f"| L1-Max, over | {' | '.join(over)} |",
        )
    )


def seed_table(seeds: Sequence[Methods]) -> str:
    """The spread of L1-Exact and L1-Max over training seeds; nothing for a single one."""
    if len(seeds) < 2:
        return ""
    lines = []
    for name in TRAINED:
        for rows in zip(*(methods[name] for methods in seeds), strict=True):
            cells = [_spread([row[key] for row in rows], style) for key, style in SPREAD.items()]
            lines.append([METHODS[name], str(rows[0]["budget"]), *cells])
    columns = ["", "asked", "used", "right", "deviation", "over"]
    title = f"## Spread over {len(seeds)} training seeds\n\nMean (least to most)."
    return f"{title}\n\n{table(columns, lines)}"


def ablation_table(main: Sequence[Rows], changed: Mapping[str, Rows]) -> str:
    """L1-Exact of every training seed as it is, and of seed 0 with one thing `changed`."""
    if not changed:
        return ""
    found = {f"as it is, seed {seed}": rows for seed, rows in enumerate(main)}
    found |= {f"`{change}`": rows for change, rows in changed.items()}
    lines = [
        [
            name,
            f"{statistics.mean(row['deviation'] for row in rows):.1%}",
            f"{statistics.mean(row['rmse'] for row in rows):.1f}",
            f"{rows[0]['correlation']:.3f}",
            *(f"{row['pass1']:.1%}" for row in rows),
        ]
        for name, rows in found.items()
    ]
    budgets = [f"right at {row['budget']}" for row in main[0]]
    columns = ["", "deviation, mean", "RMSE, mean", "correlation", *budgets]
    said = "L1-Exact, seed 0, one thing changed."
    if len(main) > 1:
        said += " What differs less than the seeds do says nothing."
    return f"## Ablations\n\n{said}\n\n{table(columns, lines)}"


def outside_table(seeds: Sequence[Methods]) -> str:
    """L1-Exact and the prompted base on what RL did not train on; methods by training seed."""
    kinds = "; ".join(f"`{name}`: {_kind(*kind)}" for name, kind in OUTSIDE.items())
    known = f"RL trains on {_kind(TERMS, NUMBERS)}; the base met all of these before."
    named = {}
    for data in OUTSIDE:
        named[f"{METHODS['base_prompted']}, `{data}`"] = [of[f"base:{data}"] for of in seeds]
        named[f"{METHODS['l1_exact']}, `{data}`"] = [of[f"l1_exact:{data}"] for of in seeds]
    said = f"{kinds}. {known} Right, then tokens used.{_of(len(seeds))}"
    return f"## Out of distribution\n\n{said}\n\n{_by_budget(named)}"


def _kind(terms: tuple[int, int], span: tuple[int, int]) -> str:
    count = f"{terms[0]} to {terms[1]}" if terms[0] < terms[1] else f"{terms[0]}"
    return f"sums of {count} numbers from {span[0]} to {span[1]}"


def details(methods: Methods) -> str:
    """All figures of every method on every data set."""
    parts = ["## Each method\n\nSeed 0."]
    for key, rows in methods.items():
        name, _, data = key.partition(":")
        if data or name in METHODS:
            title = METHODS["base_prompted" if data and name == "base" else name]
            parts.append(f"### {title}{f', `{data}`' if data else ''}\n\n{row_table(rows)}")
    return "\n\n".join(parts)


def row_table(rows: Rows) -> str:
    """One method on one data set: a line for each budget."""
    styles = {"deviation": ".1%", "rmse": ".1f", "bias": "+.1f", "over": ".1%",
              "soft_over": ".1%", "truncated": ".1%"}  # fmt: skip
    lines = [
        [
            str(row["budget"] or "–"),
            f"{row['mean_tokens']:.1f}",
            f"{row['pass1']:.1%}",
            f"{row['pass1_low']:.1%} to {row['pass1_high']:.1%}",
            *(show(row[key], style) for key, style in styles.items()),
        ]
        for row in rows
    ]
    return table(ROW, lines)


def behaviour_table(methods: Methods) -> str:
    """What changes with the budget; words that the task does not have are left out."""
    shown = [(name, row) for name in METHODS if name != "base" for row in methods[name]]
    rates = [key for key in shown[0][1]["behaviour"] if any(r["behaviour"][key] for _, r in shown)]
    parts = list(shown[0][1]["thinking"])
    lines = []
    for name, row in shown:
        values = [row["behaviour"][key] for key in rates] + [row["thinking"][key] for key in parts]
        cells = [show(value, ".2f") for value in values]
        lines.append([METHODS[name], str(row["budget"]), *cells])
    titles = [name.replace("_", " ") for name in (*(f"{key} per 1,000" for key in rates), *parts)]
    said = (
        "Words of `conf/evaluation/words/` per 1,000 tokens; the rest as in "
        "[evaluation.md](evaluation.md). Seed 0."
    )
    return f"## Behaviour\n\n{said}\n\n{table(['', 'asked', *titles], lines)}"


def _of(seeds: int) -> str:
    return f" L1: mean of {seeds} training seeds (least to most)." if seeds > 1 else ""


def _spread(values: Sequence[float], style: str) -> str:
    """A mean with the least and the most, where there are several."""
    mean, least, most = statistics.mean(values), min(values), max(values)
    return f"{mean:{style}}" + (f" ({least:{style}} to {most:{style}})" if least < most else "")
