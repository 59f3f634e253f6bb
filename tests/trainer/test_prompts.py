"""Prompts say the paper's words exactly, and become tokens without anything added."""

import pytest
from tokenizers.processors import TemplateProcessing

from trainer.data.prompts import encode_prompt, instruct
from trainer.embedded.tokenizer import build_tokenizer
from trainer.types import MODES

THINK = "Let's think step by step and output the final answer within \\boxed{}."


@pytest.mark.parametrize(
    ("mode", "budget", "text"),
    [
        ("none", 0, f"2+3=? {THINK}"),
        ("exact", 64, f"2+3=? {THINK} Think for 64 tokens."),
        ("max", 3600, f"2+3=? {THINK} Think for maximum 3600 tokens."),
    ],
)
def test_instructions_are_those_of_the_paper(mode, budget, text):
    assert instruct("2+3=?", mode, budget) == text


def test_question_is_not_a_template():
    assert instruct("Solve {n} in {0}.", "exact", 5).startswith("Solve {n} in {0}. Let's")


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"'dual'.*none.*exact.*max"):
        instruct("2+3=?", "dual", 5)


def test_modes_are_in_the_order_of_the_mode_ids():
    assert MODES == ("none", "exact", "max")  # kernels.lcpo_advantage takes 0, 1, 2


def test_prompt_is_the_chat_template_around_the_instruction():
    tokenizer = build_tokenizer()
    ids = encode_prompt(tokenizer, "2+3=?", "exact", 64)
    text = f"<|user|>2+3=? {THINK} Think for 64 tokens.<|assistant|><think>"
    assert tokenizer.decode(ids) == text
    # user, 2 + 3 = ?, " Let's ... within ", box, }, ., " Think for ", 6 4, " tokens.", two roles
    assert isinstance(ids, tuple) and len(ids) == 1 + 5 + 1 + 3 + 1 + 2 + 1 + 2


def test_no_bos_or_eos_beyond_the_template():
    tokenizer = build_tokenizer()
    plain = encode_prompt(tokenizer, "2+3=?", "none", 0)
    eos = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{eos[0]} $A", special_tokens=[eos]
    )
    assert tokenizer.encode("2")[0] == eos[1], "the processor must be at work, or nothing is shown"
    assert encode_prompt(tokenizer, "2+3=?", "none", 0) == plain
