"""Supervised examples for the embedded base: more kinds of sums than RL trains on, weak hints.

A pretrained language model has met phrases like "in about 50 words" and follows them now and then.
So here: only in a share of the examples does the budget in the prompt have anything to do with
the length of the chain; in the rest it is drawn on its own. What LCPO has to teach is to mean it.
Without a budget, or with a maximum, a chain is as long as its sum asks for.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainer.data.prompts import encode_prompt
from trainer.embedded.chains import MIN_LENGTH, write_chain, write_natural_chain
from trainer.embedded.task import NUMBERS, draw

LONGEST = 104  # tokens
TERMS = (4, 10)  # how many numbers, inclusive
SPANS = (NUMBERS, (1, 25))  # their ranges, one half of the examples each
MODES = (("none", 0.15), ("exact", 0.50), ("max", 0.35))  # shares of the examples


@dataclass(frozen=True)
class Hints:
    """How much a budget in a prompt says about the chain behind it."""

    share: float  # of the examples whose budget is meant
    noise: float  # standard deviation of log(length / budget) in those, exact mode


def example(
    tokenizer: PreTrainedTokenizerBase, seed: int, index: int, hints: Hints
) -> tuple[tuple[int, ...], list[int]]:
    """Prompt and chain token ids of example `index`: a pure function of its arguments."""
    rng = random.Random(f"{seed}/corpus/{index}")
    numbers = draw(rng, "train", TERMS, rng.choice(SPANS))
    mode = rng.choices([m for m, _ in MODES], [share for _, share in MODES])[0]
    budget = 0 if mode == "none" else draw_length(rng)
    meant = rng.random() < hints.share
    if mode == "exact":
        length = round(budget * math.exp(rng.gauss(0, hints.noise))) if meant else draw_length(rng)
        pieces = write_chain(numbers, min(max(length, MIN_LENGTH), LONGEST), rng)
    else:
        room = budget if mode == "max" and meant else LONGEST
        pieces = write_natural_chain(numbers, room, rng)
    prompt = encode_prompt(tokenizer, "+".join(map(str, numbers)) + "=?", mode, budget)
    return prompt, tokenizer.encode("".join(pieces), add_special_tokens=False)


def draw_length(rng: random.Random) -> int:
    """Half uniform, half log-uniform: long chains hold most tokens, short ones must be met too."""
    if rng.random() < 0.5:
        return rng.randint(MIN_LENGTH, LONGEST)
    return round(math.exp(rng.uniform(math.log(MIN_LENGTH), math.log(LONGEST))))
