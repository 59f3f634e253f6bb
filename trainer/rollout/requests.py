"""What is asked of the engine, and forced text (S1 budget forcing, arXiv 2501.19393)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Forced:
    """Go on behind an end: these tokens as if they had been drawn, then at most `draw` more.

    With `replace` the token that ended the stage (`</think>`, EOS) is taken back first.
    """

    token_ids: tuple[int, ...]
    draw: int
    replace: bool = False

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("forced text is empty: return None to end the sample")
        if self.draw < 0:
            raise ValueError(f"cannot draw {self.draw} tokens behind forced text")


@dataclass(frozen=True)
class Forcing:
    """Stages of a sample with text forced between them; nothing is prefilled again.

    A stage ends after `draw` drawn tokens, with one of `stop_ids`, or with EOS; then `then` gets
    the sample's tokens, that one included, and says how to go on, or None to end there. It must be
    a pure function of the tokens: a preempted sample is not asked again, an equal one is.

    S1, "stop at n tokens and force the answer": Forcing(n, (), lambda ids: Forced(answer, 20)).
    """

    draw: int
    stop_ids: tuple[int, ...]
    then: Callable[[Sequence[int]], Forced | None]

    def __post_init__(self) -> None:
        if self.draw < 1:
            raise ValueError(f"a stage must draw at least 1 token, got {self.draw}")


@dataclass(frozen=True)
class Request:
    """One sample to draw: its tokens are a pure function of prompt, weights, sampling and seed.

    `expected` is a guess of its length: longer ones start first. 0 takes max_new_tokens.
    Forced tokens count as new ones and have log-probability 0.
    """

    token_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    expected: int = 0
    forcing: Forcing | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; see kernels.sample_tokens."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
