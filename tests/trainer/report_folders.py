"""Folders for a report: evaluations of several methods, and a training run, all made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

BUDGETS = (512, 1024, 2048, 3600)
# What a model may write to break out of the page, its script, its figures or its file names.
HOSTILE = (
    "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>"
    "<!--<script>\u2028]]>&lt;\"'`${window.owned=1}\u202e\x1b[31m$x$ ../../x"
)


def evaluation_row(data: str, budget: int | None, mode: str, **changes: Any) -> dict[str, Any]:
    """A row of evaluation.json in which every figure is known."""
    asked = budget or 2500
    right = 0.2 + 0.06 * (asked / 256) ** 0.75
    return {
        "data": data, "budget": budget, "mode": mode, "n": 2, "problems": 12, "pass1": right,
        "pass1_low": right - 0.05, "pass1_high": right + 0.05, "pass_k": right, "maj_k": right,
        "mean_tokens": asked * 1.03, "deviation": 0.03, "sample_deviation": 0.08, "rmse": 40.0,
        "bias": 15.0, "over": 0.6, "soft_over": 0.1, "correlation": 0.98, "truncated": 0.0,
        "reasons": {"correct": 20, "wrong": 4},
        "behaviour": {"verification": 2 + asked / 900, "exploration": 1.0, "conclusion": 4.0},
    } | changes  # fmt: skip


def sample(data: str, problem: int, budget: int | None, mode: str, k: int) -> dict[str, Any]:
    """A row of an evaluation's samples.jsonl, right for every other problem."""
    rng = random.Random(f"{data}{problem}{budget}{mode}{k}")
    answer = str(problem) if (problem + k) % 2 else "41"
    return {
        "data": data, "problem_id": f"{data}-{problem}", "problem": f"What is {problem} times 1?",
        "budget": budget, "mode": mode, "k": k, "tokens": round(rng.gauss(budget or 2500, 60)),
        "think_tokens": 300, "correct": answer == str(problem), "answer": answer,
        "text": f"Let me see, 𝟏 times {problem}. Wait. </think>So \\boxed{{{answer}}}.",
        "reason": "correct" if answer == str(problem) else "wrong", "truth": str(problem),
    }  # fmt: skip


def write_evaluation(
    folder: Path, method: str, *, mode: str = "exact", data: tuple[str, ...] = ("amc",),
    budgets: tuple[int | None, ...] = BUDGETS, problems: int = 12, shift: float = 0.0,
) -> Path:  # fmt: skip
    """An evaluation folder; `shift` moves its accuracy."""
    cells = [(name, budget) for name in data for budget in budgets]
    rows = [evaluation_row(name, budget, mode) for name, budget in cells]
    for row in rows:
        for key in ("pass1", "pass1_low", "pass1_high"):
            row[key] = min(1.0, max(0.0, row[key] + shift))
    samples = [
        sample(name, problem, budget, mode, k)
        for name, budget in cells
        for problem in range(problems)
        for k in range(2)
    ]
    content = {"model": "runs/l1", "method": method, "settings": {"seed": 0}, "rows": rows}
    return write_files(folder, {"evaluation.json": content}, {"samples.jsonl": samples})


def write_training(folder: Path, steps: int = 12) -> Path:
    """The folder of a training run, with an evaluation before and after it."""
    rng = random.Random(0)
    names = ("reward/mean", "reward/correctness", "reward/length", "length/deviation")
    metrics = [
        {"step": s, "metrics": {name: s / steps for name in names}, "timing": {}}
        for s in range(1, steps + 1)
    ]
    budgets = (16, 32, 64)
    evaluations = [
        {
            "step": step, "phase": phase, "overall": {},
            "budgets": [
                {"budget": b, "samples": 20, "accuracy": 0.3 + b / 200, "mean_tokens": b + off,
                 "deviation": 0.2, "mean_deviation": 0.1, "rmse": 3.0, "over_budget": 0.5}
                for b in budgets
            ],
            "used": [[b, max(1, round(rng.gauss(b, off))), 1] for b in budgets for _ in range(20)],
        }
        for step, phase, off in ((0, "before", 9), (steps, "after", 1))
    ]  # fmt: skip
    samples = [
        {
            "step": step, "group": 7, "problem": "train-7", "question": "3+4=?", "answers": ["7"],
            "mode": "exact", "budget": 20, "sample": k, "text": "3+4=7 </think>\\boxed{7}",
            "tokens": 18 + k, "truncated": False, "reason": "correct", "extracted": "7",
            "correctness": 1.0, "length": -0.1, "reward": 0.9, "advantage": 0.1,
        }
        for step in (steps - 1, steps) for k in range(3)
    ]  # fmt: skip
    config = {"data": {"heldout": "embedded"}, "budget": {"mode": "exact"}}
    tables = {
        "metrics.jsonl": metrics,
        "evaluations.jsonl": evaluations,
        "samples.jsonl": samples,
    }
    return write_files(folder, {"config.json": config}, tables)


def write_files(
    folder: Path, objects: dict[str, Any], tables: dict[str, list[dict[str, Any]]]
) -> Path:
    """JSON files and files of JSON lines in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in objects.items():
        (folder / name).write_text(json.dumps(content))
    for name, rows in tables.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
