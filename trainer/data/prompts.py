"""From a problem and its budget to prompt tokens: the paper's instruction, the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.types import MODES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_INSTRUCTION = " Let's think step by step and output the final answer within \\boxed{}."
BUDGET_INSTRUCTION = {
    "none": "",
    "exact": " Think for {n} tokens.",
    "max": " Think for maximum {n} tokens.",
}


def instruct(question: str, mode: str, budget: int) -> str:
    """The user's turn: question, instruction, and the budget in words (recipe table "Task")."""
    if mode not in MODES:
        raise ValueError(f"unknown budget mode {mode!r}; there are {MODES}")
    return question + BASE_INSTRUCTION + BUDGET_INSTRUCTION[mode].format(n=budget)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, mode: str, budget: int
) -> tuple[int, ...]:
    """Token ids of the whole prompt, up to and with what the template puts before the answer."""
    messages = [{"role": "user", "content": instruct(question, mode, budget)}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))
