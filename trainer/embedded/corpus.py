"""Supervised examples for the embedded base: chains of widely varying length, weak budget hints.

A pretrained language model has met phrases like "in about 50 words" and follows them now and then.
So here: only in a share of the examples does the budget in the prompt have anything to do with
the length of the chain; in the rest it is drawn on its own. What LCPO has to teach is to mean it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainer.data.prompts import encode_prompt
from trainer.embedded.chains import MIN_LENGTH, write_chain
from trainer.embedded.task import draw_numbers

LONGEST = 104  # tokens
MODES = (("none", 0.15), ("exact", 0.50), ("max", 0.35))  # shares of the examples


@dataclass(frozen=True)
class Hints:
    """How much a budget in a prompt says about the chain behind it."""

    share: float  # of the examples whose budget is meant
    noise: float  # standard deviation of log(budget / length) in those, exact mode


def example(
    tokenizer: PreTrainedTokenizerBase, seed: int, index: int, hints: Hints
) -> tuple[tuple[int, ...], list[int]]:
    """Prompt and chain token ids of example `index`: a pure function of its arguments."""
    rng = random.Random(f"{seed}/corpus/{index}")
    numbers = draw_numbers(seed, index, "train")
    length = draw_length(rng)
    mode = rng.choices([m for m, _ in MODES], [share for _, share in MODES])[0]
    budget = draw_length(rng)  # a budget nobody meant
    if rng.random() < hints.share:
        spread = rng.gauss(0, hints.noise) if mode == "exact" else -math.log(rng.uniform(0.55, 1))
        budget = max(MIN_LENGTH, round(length * math.exp(spread)))
    question = "+".join(map(str, numbers)) + "=?"
    prompt = encode_prompt(tokenizer, question, mode, 0 if mode == "none" else budget)
    chain = "".join(write_chain(numbers, length, rng))
    return prompt, tokenizer.encode(chain, add_special_tokens=False)


def draw_length(rng: random.Random) -> int:
    """Half uniform, half log-uniform: long chains hold most tokens, short ones must be met too."""
    if rng.random() < 0.5:
        return rng.randint(MIN_LENGTH, LONGEST)
    return round(math.exp(rng.uniform(math.log(MIN_LENGTH), math.log(LONGEST))))
