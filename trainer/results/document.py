"""docs/results.md from the evaluations under the root: verdicts, tables, plots, commands."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluate.store import SAMPLES
from trainer.files import read_json
from trainer.record import iter_rows
from trainer.results.chosen import CHOSEN
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
from trainer.results.plots import plot_methods, plot_outside
from trainer.results.stages import evaluation_of, is_complete
from trainer.results.tables import (
    METHODS,
    ablation_table,
    behaviour_table,
    between_table,
    budget_table,
    claim_table,
    details,
    outside_table,
    seed_table,
)

HEAD = """# Results

The paper's claims in miniature, on the embedded task. Written by `make results`; do not edit.

Training seeds: {seeds}. {problems} held-out problems, drawn by a seed that no run has,
{samples} sample(s) each, at temperature 1. Budgets {budgets}; {skip} were never drawn in training.
"95%" is an interval over problems, for one model. Trained with torch {torch} on the CPU, threads:
{threads}, commits {commits}.{quick}"""
QUICK = "\n\n**A quick run, to see that the command works: no result.**"


@dataclass(frozen=True)
class Found:
    """What is complete under a root."""

    seeds: list[dict[str, Rows]]  # rows by method, for each training seed from 0 on
    verdicts: list[list[Claim]]  # of each training seed
    ablations: dict[str, Rows]  # L1-Exact by what was changed


def write_document(plan: Plan, out: Path) -> None:
    """Write `out` and its plots beside it, with all seeds and ablations that are complete."""
    found = find(plan)
    first = found.seeds[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = [out.with_suffix(".png"), out.with_name(f"{out.stem}_outside.png")]
    plot_methods(found.seeds, METHODS, pictures[0])
    plot_outside(first, pictures[1])
    parts = [
        _head(plan, len(found.seeds)),
        claim_table(found.verdicts),
        budget_table(found.seeds),
        f"![Accuracy and used tokens by method]({pictures[0].name})",
        between_table(found.seeds),
        seed_table(found.seeds),
        ablation_table([of["l1_exact"] for of in found.seeds], found.ablations),
        outside_table(found.seeds),
        f"![Accuracy and used tokens out of distribution]({pictures[1].name})",
        CHOSEN,
        details(first),
        behaviour_table(first),
        _commands(plan, found),
    ]
    out.write_text("\n\n".join(filter(None, parts)) + "\n")


def find(plan: Plan) -> Found:
    """Everything that is complete under the plan's root. OSError, ValueError when seed 0 is not."""
    baselines = {name: evaluation_of(stage) for name, stage in base_stages(plan).items()}
    tokens = baselines["base"]["rows"][0]["mean_tokens"]
    found = Found([], [], {})
    while True:
        stages = evaluation_stages(plan, len(found.seeds), tokens)
        if found.seeds and not all(map(is_complete, stages.values())):
            break
        evaluations = {name: evaluation_of(stage) for name, stage in stages.items()}
        methods = methods_of({**baselines, **evaluations})
        found.seeds.append(methods)
        found.verdicts.append(judge(methods, easy_and_hard(stages["l1_max"])))
    for name, changes in ABLATIONS.items():
        stage = ablation_stages(plan, name)["l1_exact"]
        if is_complete(stage):
            found.ablations[" ".join(changes)] = evaluation_of(stage)["rows"]
    return found


def methods_of(evaluations: Mapping[str, dict[str, Any]]) -> dict[str, Rows]:
    """Rows by method; those outside the training distribution as "METHOD:DATA"."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, evaluation in evaluations.items():
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


def _head(plan: Plan, seeds: int) -> str:
    # Of the trainings, not of this process: a document is often written again, and elsewhere.
    runs = [stage.folder for s in range(seeds) for stage in training_stages(plan, s).values()]
    found = [read_json(folder / "environment.json") for folder in runs]
    return HEAD.format(
        seeds=", ".join(map(str, range(seeds))),
        problems=plan.problems,
        samples=plan.samples,
        budgets=", ".join(map(str, plan.budgets)),
        skip=" and ".join(map(str, plan.skip)),
        threads=found[0]["cpu_threads"],
        torch=found[0]["torch"],
        commits=", ".join(dict.fromkeys(where["commit"] for where in found)),
        quick=QUICK if plan.quick else "",
    )


def _commands(plan: Plan, found: Found) -> str:
    tokens = found.seeds[0]["base"][0]["mean_tokens"]
    stages = [base_stages(plan), training_stages(plan, 0), evaluation_stages(plan, 0, tokens)]
    listed = "\n".join(stage.command for of in stages for stage in of.values())
    asked = f"--seeds {len(found.seeds)} --{'' if found.ablations else 'no-'}ablations"
    return (
        f'## Commands\n\n`make results ARGS="{asked}"`; of seed 0 it ran these, each with one '
        f"thread (`OMP_NUM_THREADS=1`):\n\n```\n{listed}\n```"
    )
