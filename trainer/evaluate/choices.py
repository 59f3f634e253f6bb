"""Multiple choice as the paper asks it: options by letter, the answer a letter in the box."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from trainer.types import Problem


def write_choices(
    name: str, question: str, choices: Sequence[str], right: int, rng: random.Random
) -> Problem:
    """The question with its choices shuffled by `rng`; the truth is the letter of `right`.

    Example: write_choices("q", "1+1?", ["2", "3"], 0, rng) may ask "1+1?\\n\\n(A) 3\\n(B) 2 ..."
    with the answer "B". Raises ValueError for an index that is no choice.
    """
    if not 0 <= right < len(choices) <= len(string.ascii_uppercase):
        raise ValueError(f"{name}: answer {right} of {len(choices)} choices")
    order = list(range(len(choices)))
    rng.shuffle(order)
    letters = string.ascii_uppercase
    listed = "\n".join(f"({letters[i]}) {choices[j]}" for i, j in enumerate(order))
    text = f"{question}\n\n{listed}\n\nThe final answer is the letter of the right choice."
    return Problem(name, text, (letters[order.index(right)],), "choice")
