"""Builds the embedded tokenizer: bytes, so any text encodes, plus whole phrases as added tokens.

The phrases of the instruction and the words of the chains are one token each, so a prompt costs
about 20 tokens, most of them the problem itself; digits stay single. Added tokens are matched
before any pre-tokenizer, which makes the ids the same whatever class a loader picks:
AutoTokenizer rebuilds the pre-tokenizer of every Qwen2 model.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.data.prompts import BASE_INSTRUCTION, BUDGET_INSTRUCTION
from trainer.embedded.chains import BOX, CHECK, EOS, FILLERS, THINK_END

PAD = "<|pad|>"
SPECIALS = [PAD, EOS, "<|user|>", "<|assistant|>", "<think>", THINK_END]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, the same on every machine. Ids: 256 bytes, then specials, then phrases."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    phrases = dict.fromkeys([*_phrases(), CHECK, *FILLERS])  # in order, each once
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in phrases])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template to `folder`."""
    build_tokenizer().save_pretrained(folder)


def _phrases() -> list[str]:
    """The constant stretches of a prompt, cut where a number goes in or a box opens."""
    before_box = BASE_INSTRUCTION.split(BOX)[0]
    around_budget = [part for text in BUDGET_INSTRUCTION.values() for part in text.split("{n}")]
    return [before_box, BOX, *filter(None, around_budget)]
