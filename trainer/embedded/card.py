"""The card of the embedded base: how it was made and what it measured; pretrain writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainer.config import EvaluateSettings
from trainer.embedded.chains import MIN_LENGTH
from trainer.embedded.corpus import LONGEST, TERMS
from trainer.embedded.task import make_problem
from trainer.evaluate import evaluate
from trainer.grading.grader import Grader
from trainer.model import Decoder
from trainer.rollout import RolloutEngine

PROBLEMS = 500
BUDGETS = (16, 32, 48, 64, 96)
TEXT = """# The embedded base

A Qwen2-architecture language model of {parameters:,} parameters, trained from scratch by

    python -m trainer.pretrain

(recipe and final loss in `pretrain.json`). Its corpus, `trainer/embedded/corpus.py`, is sums of
{least} to {most} numbers, more kinds than RL trains on, with chains of thought of {shortest} to
{longest} tokens; without a budget, or with a maximum, a chain is as long as its sum asks for. In
the last {late:.0%} of the training only {share:.0%} of the budgets in the prompts have to do with
the length of the chain behind them (log-normal noise of {noise}); before that {early:.0%}. So the
model has met budgets and can count, but has no reason to trust the number it reads: a weak, noisy
understanding, which LCPO is to turn into control.

Measured by the same command on {problems} held-out problems, one sample each, temperature 1:

{table}

Over all: accuracy {accuracy:.1%}, length deviation {deviation:.1%}, correlation of used with asked
tokens {correlation:.2f} (rank correlation {rank_correlation:.2f}).

It knows nothing else: it is a test bench for length control, not an assistant.
"""


def write_card(
    folder: Path, model: Decoder, tokenizer: PreTrainedTokenizerBase, recipe: dict[str, Any]
) -> None:
    """Evaluate the model at BUDGETS on held-out problems and write `folder`/README.md."""
    engine = RolloutEngine(
        model,
        eos_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        batch_size=512,
    )
    settings = EvaluateSettings(
        every=0,
        budgets=BUDGETS,
        problems=PROBLEMS,
        samples=1,
        temperature=1.0,
        top_p=1.0,
        limit_factor=2.0,
    )
    problems = [make_problem(recipe["seed"], i, "heldout") for i in range(PROBLEMS)]
    row = evaluate(settings, problems, engine, tokenizer, mode="exact", grader=Grader(), seed=0)
    lines = ["| asked | used, mean | deviation | right |", "|---|---|---|---|"]
    lines += [
        f"| {r['budget']} | {r['mean_tokens']:.1f} | {r['deviation']:.0%} | {r['accuracy']:.0%} |"
        for r in row["budgets"]
    ]
    card = TEXT.format(
        least=TERMS[0],
        most=TERMS[1],
        shortest=MIN_LENGTH,
        longest=LONGEST,
        parameters=recipe["parameters"],
        late=1 - recipe["early"],
        share=recipe["hint_share"],
        early=recipe["hint_share_early"],
        noise=recipe["hint_noise"],
        problems=PROBLEMS,
        table="\n".join(lines),
        **{k: v for k, v in row["overall"].items() if k in TEXT},
    )
    (folder / "README.md").write_text(card)
