"""docs/results.md from the evaluations under the root: verdicts, tables, plots, commands."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.embedded.outside import OUTSIDE
from trainer.embedded.task import NUMBERS, TERMS
from trainer.evaluate.store import SAMPLES
from trainer.files import read_json
from trainer.preflight import environment
from trainer.progress import show
from trainer.record import iter_rows
from trainer.results.claims import Claim, Rows, judge
from trainer.results.plan import (
    ABLATIONS,
    Plan,
    Stage,
    ablation_stages,
    base_stages,
    evaluation_stages,
    training_stages,
)
from trainer.results.plots import plot_results
from trainer.results.stages import MARK, evaluation_of, is_complete

METHODS = {
    "base": "base model, no budget",
    "base_prompted": "base model, budget in its prompt",
    "truncate": "base model, cut at the budget",
    "s1": "base model, S1 budget forcing",
    "l1_exact": "**L1-Exact**",
    "l1_max": "**L1-Max**",
}
SPREAD = {"mean_tokens": ".1f", "pass1": ".1%", "deviation": ".1%", "over": ".1%"}
HEAD = """# Results

The paper's claims in miniature, on the embedded task. Written by `make results`; do not edit.

{problems} held-out problems, drawn by a seed that no run has, {samples} sample(s) each, at
temperature 1. Budgets {budgets}; {skip} were never drawn in training. {machine}.
Trained and evaluated in {minutes:.0f} minutes.{quick}
"""
QUICK = "\n\n**A quick run, to see that the command works: no result.**"
TABLE = ("| asked | used | right | 95% | deviation | RMSE | bias | over | > 1.1x | cut off |",
         "|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip


def write_document(plan: Plan, out: Path) -> None:
    """Write `out` and its plot beside it, with all seeds and ablations that are complete."""
    base = base_stages(plan)
    baselines = {name: evaluation_of(stage) for name, stage in base.items()}
    tokens = baselines["base"]["rows"][0]["mean_tokens"]
    seeds: dict[int, dict[str, Stage]] = {}
    while all(is_complete(s) for s in evaluation_stages(plan, len(seeds), tokens).values()):
        seeds[len(seeds)] = evaluation_stages(plan, len(seeds), tokens)
    found = {s: {n: evaluation_of(stage) for n, stage in of.items()} for s, of in seeds.items()}
    first = methods_of(baselines, found[0])
    verdicts = {
        seed: judge(methods_of(baselines, found[seed]), easy_and_hard(stages["l1_max"]))
        for seed, stages in seeds.items()
    }
    stages = list(base.values())
    for seed, evaluated in seeds.items():
        stages += [*training_stages(plan, seed).values(), *evaluated.values()]
    out.parent.mkdir(parents=True, exist_ok=True)
    plot_results({k: first[k] for k in METHODS}, METHODS, out.with_suffix(".png"))
    parts = [
        _head(plan, stages),
        _claims(verdicts),
        f"## Methods\n\n![Accuracy and used tokens by method]({out.stem}.png)",
        *(f"### {METHODS[name]}\n\n" + _rows(first[name]) for name in METHODS),
        _correlations(first),
        _outside(first),
        _behaviour(first),
        _seeds(found),
        _ablations(plan, first["l1_exact"]),
        _commands(plan, [*base.values(), *training_stages(plan, 0).values(), *seeds[0].values()]),
    ]
    out.write_text("\n\n".join(filter(None, parts)) + "\n")


def methods_of(
    baselines: Mapping[str, dict[str, Any]], evaluations: Mapping[str, dict[str, Any]]
) -> dict[str, Rows]:
    """Rows by method; those outside the training distribution as "METHOD:DATA"."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, evaluation in {**baselines, **evaluations}.items():
        for row in evaluation["rows"]:
            label = name.removesuffix("_outside")
            key = label if row["data"] == "embedded" else f"{label}:{row['data']}"
            rows.setdefault(key, []).append(row)
    return {key: sorted(of, key=lambda row: row["budget"]) for key, of in rows.items()}


def easy_and_hard(stage: Stage) -> tuple[float, float]:
    """Mean tokens of an evaluation's samples on the problems of fewest and of most numbers."""
    tokens: dict[int, list[int]] = {}
    for row in iter_rows(stage.folder / SAMPLES, "problem", str):
        tokens.setdefault(row["problem"].count("+"), []).append(row["tokens"])
    return statistics.mean(tokens[min(tokens)]), statistics.mean(tokens[max(tokens)])


def _head(plan: Plan, stages: Iterable[Stage]) -> str:
    where = environment()
    seconds = sum(read_json(stage.folder / MARK)["seconds"] for stage in stages)
    return HEAD.format(
        problems=plan.problems,
        samples=plan.samples,
        budgets=", ".join(map(str, plan.budgets)),
        skip=" and ".join(map(str, plan.skip)),
        machine=f"{platform.machine()}, {where['cpu_threads']} threads, torch {where['torch']}, "
        f"commit {where['commit']}",
        minutes=seconds / 60,
        quick=QUICK if plan.quick else "",
    ).rstrip()


def _claims(verdicts: Mapping[int, Sequence[Claim]]) -> str:
    lines = ["## The claims", "", "| | claim | met | evidence |", "|---|---|---|---|"]
    for claims in zip(*verdicts.values(), strict=True):
        met = [claim.met for claim in claims]
        verdict = "**met**" if all(met) else "**not met**"
        if len(met) > 1 and any(met) and not all(met):
            verdict = f"**{sum(met)} of {len(met)} seeds**"
        evidence = [
            f"seed {seed}: {claim.evidence}" if len(met) > 1 else claim.evidence
            for seed, claim in zip(verdicts, claims, strict=True)
        ]
        lines.append(f"| {claims[0].number} | {claims[0].text} | {verdict} | "
                     f"{'<br>'.join(evidence)} |")  # fmt: skip
    return "\n".join(lines)


def _rows(rows: Rows) -> str:
    lines = list(TABLE)
    for row in rows:
        away = [
            show(row["deviation"], ".1%"),
            show(row["rmse"], ".1f"),
            show(row["bias"], "+.1f"),
            show(row["over"], ".1%"),
            show(row["soft_over"], ".1%"),
            show(row["truncated"], ".1%"),
        ]
        interval = f"{row['pass1_low']:.1%} to {row['pass1_high']:.1%}"
        cells = [str(row["budget"] or "–"), f"{row['mean_tokens']:.1f}", f"{row['pass1']:.1%}"]
        lines.append(f"| {' | '.join([*cells, interval, *away])} |")
    return "\n".join(lines)


def _correlations(methods: Mapping[str, Rows]) -> str:
    known = {name: methods[name][0]["correlation"] for name in METHODS}
    listed = [f"{METHODS[name]} {value:.3f}" for name, value in known.items() if value is not None]
    return f"Correlation of used with requested tokens: {', '.join(listed)}."


def _outside(methods: Mapping[str, Rows]) -> str:
    kinds = "; ".join(f"`{name}`: {_kind(*kind)}" for name, kind in OUTSIDE.items())
    known = f"RL trains on {_kind(TERMS, NUMBERS)}; the base met all of these before."
    parts = ["## Out of distribution", "", f"{kinds}. {known}"]
    for key, rows in methods.items():
        label, _, data = key.partition(":")
        if data:
            parts += [
                "",
                f"### {METHODS[{'base': 'base_prompted'}.get(label, label)]} on {data}",
                "",
                _rows(rows),
            ]
    return "\n".join(parts)


def _kind(terms: tuple[int, int], span: tuple[int, int]) -> str:
    return f"sums of {terms[0]} to {terms[1]} numbers from {span[0]} to {span[1]}"


def _behaviour(methods: Mapping[str, Rows]) -> str:
    """What changes with the budget; words that the task does not have are left out."""
    shown = [(name, row) for name in METHODS if name != "base" for row in methods[name]]
    rates = [key for key in shown[0][1]["behaviour"] if any(r["behaviour"][key] for _, r in shown)]
    parts = list(shown[0][1]["thinking"])
    titles = [f"{key} per 1,000" for key in rates] + parts
    lines = [
        "## Behaviour",
        "",
        "Words of `conf/evaluation/words/` per 1,000 tokens; the rest as in "
        "[evaluation.md](evaluation.md).",
        "",
        f"| | asked | {' | '.join(titles).replace('_', ' ')} |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for name, row in shown:
        values = [row["behaviour"][key] for key in rates] + [row["thinking"][key] for key in parts]
        cells = [show(value, ".2f") for value in values]
        lines.append(f"| {METHODS[name]} | {row['budget']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seeds(found: Mapping[int, Mapping[str, dict[str, Any]]]) -> str:
    if len(found) < 2:
        return ""
    lines = [
        f"## Spread over {len(found)} seeds",
        "",
        "Mean (least to most).",
        "",
        "| | asked | used | right | deviation | over |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("l1_exact", "l1_max"):
        for rows in zip(*(found[seed][name]["rows"] for seed in found), strict=True):
            cells = [_spread([row[key] for row in rows], style) for key, style in SPREAD.items()]
            lines.append(f"| {METHODS[name]} | {rows[0]['budget']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], style: str) -> str:
    mean, least, most = statistics.mean(values), min(values), max(values)
    return f"{mean:{style}} ({least:{style}} to {most:{style}})"


def _ablations(plan: Plan, main: Rows) -> str:
    found: dict[str, Rows] = {"as above": main}
    for name, changes in ABLATIONS.items():
        stage = ablation_stages(plan, name)["l1_exact"]
        if is_complete(stage):
            found[f"`{' '.join(changes)}`"] = evaluation_of(stage)["rows"]
    if len(found) < 2:
        return ""
    lines = [
        "## Ablations",
        "",
        "L1-Exact, seed 0, one thing changed.",
        "",
        "| | deviation, mean | RMSE, mean | correlation | right, by budget |",
        "|---|---|---|---|---|",
    ]
    for name, rows in found.items():
        deviation = statistics.mean(row["deviation"] for row in rows)
        rmse = statistics.mean(row["rmse"] for row in rows)
        right = " → ".join(f"{row['pass1']:.1%}" for row in rows)
        lines.append(
            f"| {name} | {deviation:.1%} | {rmse:.1f} | {rows[0]['correlation']:.3f} | {right} |"
        )
    return "\n".join(lines)


def _commands(plan: Plan, stages: Sequence[Stage]) -> str:
    listed = "\n".join(stage.command for stage in stages)
    return f"## Commands\n\n`python -m trainer.results` ran, of seed 0:\n\n```\n{listed}\n```"
