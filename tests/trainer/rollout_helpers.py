"""What the tests of the rollout engine ask of it."""

from __future__ import annotations

from typing import Any

from trainer.embedded.tokenizer import build_tokenizer
from trainer.model import Decoder
from trainer.rollout import Request, RolloutEngine, Sampling
from trainer.types import Completion

TOKENIZER = build_tokenizer()
IDS, EOS = len(TOKENIZER), TOKENIZER.eos_token_id
# Lengths 1 to 30; one holds EOS, as chat templates do, and one pads.
PROMPTS = (
    (17,),
    tuple(range(30, 60)),
    (258, 18, EOS, 260, 40, EOS, 259),
    (TOKENIZER.pad_token_id, 258, 80, 81),
)
WARM = Sampling(temperature=0.6)


def engine_of(model: Decoder, batch_size: int = 64, **settings: Any) -> RolloutEngine:
    return RolloutEngine(model, eos_id=EOS, vocab_size=IDS, batch_size=batch_size, **settings)


def mixed_requests() -> list[Request]:
    """Five samples of each prompt, with limits from 3 to 20."""
    return [
        Request(prompt, 1000 * i + k, 3 + (7 * i + 5 * k) % 18)
        for k in range(5)
        for i, prompt in enumerate(PROMPTS)
    ]


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [c.token_ids for c in completions]
