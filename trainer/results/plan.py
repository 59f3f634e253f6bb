"""What `make results` runs: every training and evaluation as a command with its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import ConfigError
from trainer.embedded.outside import OUTSIDE

# Judged. For each number of digits its whole chains (4: 23 to 29 tokens, 5: 31 to 37, 6: 39 to 45,
# 7: 47 to 53, 8: 53 to 61) nearly all fit or hardly any: at an edge a sum may miss by a token.
BUDGETS = (16, 22, 46, 72)
BETWEEN = (20, 26, 30, 38, 54, 62)  # shown, edges among them
SKIP = (22, 46)  # never drawn in training
OUTSIDE_DATA = tuple(OUTSIDE)
ABLATIONS = {  # name: what is changed in the L1-Exact run of the first seed
    "released": ("reward=released",),
    "sigmoid": ("reward=sigmoid",),
    "no-std": ("algorithm.estimator=dr_grpo",),
    "one-update": ("algorithm.updates=1",),
}
QUICK_TRAIN = (
    "train.steps=2",
    "rollout.prompts=4",
    "rollout.samples=4",
    "evaluate.problems=4",
    "evaluate.samples=1",
    "log.tensorboard=false",
)


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    root: Path  # of all runs and evaluations
    model: str  # the base
    problems: int  # held-out problems an evaluation
    samples: int  # a problem and budget
    seeds: int
    ablations: bool
    quick: bool
    train: tuple[str, ...]  # further overrides of every training run
    budgets: tuple[int, ...] = BUDGETS  # four, ascending
    skip: tuple[int, ...] = SKIP  # never drawn in training

    def __post_init__(self) -> None:
        if len(self.budgets) != len(BUDGETS) or list(self.budgets) != sorted(set(self.budgets)):
            raise ConfigError(f"--budgets: expected four, ascending, got {list(self.budgets)}")


@dataclass(frozen=True)
class Stage:
    """One command: `kind` "train" runs trainer.run, "evaluate" trainer.evaluate."""

    kind: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        """Of its output, beside the folder."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def module(self) -> str:
        """What runs it."""
        return {"train": "trainer.run", "evaluate": "trainer.evaluate"}[self.kind]

    @property
    def command(self) -> str:
        """As it would be typed, without the folder."""
        quoted = [f"'{a}'" if "[" in a else a for a in self.arguments]
        return " ".join(["python -m", self.module, *quoted])


def base_stages(plan: Plan) -> dict[str, Stage]:
    """The baselines, by the name of their method: they do not depend on a training seed."""
    base = ("mode=none",)
    return {
        "base": _evaluate(plan, "base", "base", *base),
        "base_prompted": _evaluate(plan, "base", "base_prompted", "mode=exact"),
        "truncate": _evaluate(plan, "base", "truncate", "method=truncate", *base),
        "s1": _evaluate(plan, "base", "s1", "method=s1", *base),
        "base_outside": _evaluate(plan, "base", "base_outside", "mode=exact", data=OUTSIDE_DATA),
    }


def training_stages(plan: Plan, seed: int) -> dict[str, Stage]:
    """L1-Exact from the base, then L1-Max from L1-Exact."""
    folder = plan.root / f"seed-{seed}"
    return {
        "l1_exact": _train(plan, folder / "l1_exact", "l1_exact", plan.model, seed),
        "l1_max": _train(plan, folder / "l1_max", "l1_max", str(folder / "l1_exact"), seed),
    }


def evaluation_stages(plan: Plan, seed: int, base_tokens: float) -> dict[str, Stage]:
    """Both models of a seed; `base_tokens`, the base's own mean length, is a budget too."""
    group = f"seed-{seed}"
    exact = f"model.path={plan.root / group / 'l1_exact'}"
    best = f"model.path={plan.root / group / 'l1_max'}"
    length = f"budgets=[{max(1, round(base_tokens))}]"
    between = f"budgets={_listed(BETWEEN)}"
    return {
        "l1_exact": _evaluate(plan, group, "l1_exact", "mode=exact", exact),
        "l1_max": _evaluate(plan, group, "l1_max", "mode=max", best),
        "l1_exact_at_base": _evaluate(plan, group, "l1_exact_at_base", "mode=exact", exact, length),
        "l1_exact_between": _evaluate(
            plan, group, "l1_exact_between", "mode=exact", exact, between
        ),
        "l1_max_between": _evaluate(plan, group, "l1_max_between", "mode=max", best, between),
        "l1_exact_outside": _evaluate(
            plan, group, "l1_exact_outside", "mode=exact", exact, data=OUTSIDE_DATA
        ),
    }


def ablation_stages(plan: Plan, name: str) -> dict[str, Stage]:
    """L1-Exact of seed 0 with one thing changed, and its evaluation."""
    group = f"ablation-{name}"
    folder = plan.root / group / "l1_exact"
    return {
        "train": _train(plan, folder, "l1_exact", plan.model, 0, *ABLATIONS[name]),
        "l1_exact": _evaluate(plan, group, "l1_exact", "mode=exact", f"model.path={folder}"),
    }


def chains(plan: Plan, base_tokens: float) -> list[list[Stage]]:
    """All stages: a chain's follow each other, chains can run side by side; the longest first."""
    found = [
        [*training_stages(plan, s).values(), *evaluation_stages(plan, s, base_tokens).values()]
        for s in range(plan.seeds)
    ]
    if plan.ablations:
        found += [list(ablation_stages(plan, name).values()) for name in ABLATIONS]
    return [*found, list(base_stages(plan).values())]


def _train(
    plan: Plan, folder: Path, experiment: str, model: str, seed: int, *changes: str
) -> Stage:
    arguments = (
        f"+experiment={experiment}",
        "scale=embedded",
        f"model.path={model}",
        f"dir={folder}",
        f"seed={seed}",
        f"budget.skip={_listed(plan.skip)}",
        "evaluate.every=0",
        *(QUICK_TRAIN if plan.quick else ()),
        *plan.train,
        *changes,
    )
    return Stage("train", folder, arguments)


def _evaluate(
    plan: Plan, group: str, name: str, *changes: str, data: Sequence[str] = ("embedded",)
) -> Stage:
    folder = plan.root / group / f"evaluation-{name}"
    arguments = (
        "scale=embedded",
        f"model.path={plan.model}",
        f"name={name}",
        f"data={_listed(data)}",
        f"problems={plan.problems}",
        f"n={plan.samples}",
        f"budgets={_listed(plan.budgets)}",
        f"out={folder}",
        *changes,
    )
    # The last one wins in hydra, and a doubled key reads badly in the document.
    unique = {argument.partition("=")[0]: argument for argument in arguments}
    return Stage("evaluate", folder, tuple(unique.values()))


def _listed(items: Sequence[object]) -> str:
    return f"[{','.join(map(str, items))}]"
