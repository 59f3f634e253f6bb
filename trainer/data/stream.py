"""The prompts of a run as a pure function of (seed, cursor): order, budgets and modes included.

L1 draws a budget once, unseeded, when its data file is built; here it is redrawn each epoch from
(seed, epoch, row), so a resumed run asks exactly what the uninterrupted one would have.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.config import BudgetSettings, ConfigError
from trainer.data.prompts import encode_prompt
from trainer.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cursor:
    """Where the next prompt is read: `index` rows into the shuffled order of `epoch`."""

    epoch: int = 0
    index: int = 0


def draw_budget(settings: BudgetSettings, seed: int, epoch: int, row: int) -> tuple[str, int]:
    """Mode and n_gold of one row: U{min..max} or log-uniform; dual flips a coin for the mode."""
    if settings.mode == "none":
        return "none", 0
    rng = random.Random(f"{seed}/budget/{epoch}/{row}")
    mode = rng.choice(("exact", "max")) if settings.mode == "dual" else settings.mode
    low, high = math.log(settings.min - 0.5), math.log(settings.max + 0.5)
    while True:
        if settings.law == "uniform":
            budget = rng.randint(settings.min, settings.max)
        else:
            budget = round(math.exp(rng.uniform(low, high)))
        if budget not in (settings.skip or ()):
            return mode, budget


@dataclass
class PromptStream:
    """Endless prompts from a problem set; over-long ones are dropped and counted in `dropped`."""

    problems: tuple[Problem, ...]
    tokenizer: PreTrainedTokenizerBase
    budget: BudgetSettings
    seed: int
    max_prompt_tokens: int
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)  # of the epoch last asked

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """{"rows", "sha256"} of the problems in their order: what a resume must find unchanged."""
        rows = [dataclasses.asdict(problem) for problem in self.problems]
        text = json.dumps(rows, sort_keys=True)  # ASCII: lone surrogates have no UTF-8
        return {"rows": len(rows), "sha256": hashlib.sha256(text.encode("ascii")).hexdigest()}

    def take(self, cursor: Cursor, count: int) -> tuple[list[Prompt], Cursor, int]:
        """The next `count` prompts, the cursor behind them, and how many rows were too long.

        Raises ConfigError when a whole epoch holds no prompt that fits.
        """
        prompts: list[Prompt] = []
        dropped = dropped_in_row = 0
        epoch, index = cursor.epoch, cursor.index
        while len(prompts) < count:
            if index >= len(self.problems):
                epoch, index = epoch + 1, 0
            prompt = self._prompt(epoch, self._row(epoch, index))
            index += 1
            if prompt is None:
                dropped, dropped_in_row = dropped + 1, dropped_in_row + 1
                if dropped_in_row >= 2 * len(self.problems):  # so many hold one whole epoch
                    raise ConfigError(
                        f"data.max_prompt_tokens: no prompt of {len(self.problems)} problems "
                        f"fits {self.max_prompt_tokens} tokens"
                    )
            else:
                prompts.append(prompt)
                dropped_in_row = 0
        return prompts, Cursor(epoch, index), dropped

    def _row(self, epoch: int, index: int) -> int:
        if self._order[0] != epoch:
            order = list(range(len(self.problems)))
            random.Random(f"{self.seed}/order/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][index]

    def _prompt(self, epoch: int, row: int) -> Prompt | None:
        problem = self.problems[row]
        mode, budget = draw_budget(self.budget, self.seed, epoch, row)
        token_ids = encode_prompt(self.tokenizer, problem.question, mode, budget)
        if len(token_ids) > self.max_prompt_tokens:
            return None
        return Prompt(epoch * len(self.problems) + row, problem, mode, budget, token_ids)
