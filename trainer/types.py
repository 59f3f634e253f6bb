"""The nouns of the data path: one frozen dataclass each, with shapes and a worked example.

Imports no sibling. Everything here is plain data; whatever computes lives elsewhere.
Shape letters: N samples of a step, B sequences of one packed batch, T its tokens,
R its response tokens (the only rows that reach the LM head).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MODES = ("none", "exact", "max")  # the index is the mode id that kernels.lcpo_advantage takes


@dataclass(frozen=True)
class Problem:
    """One question with its accepted answers.

    Example: Problem("train-17", "Compute 3+14.", ("17",), "math")
    """

    id: str
    question: str
    answers: tuple[str, ...]  # alternatives: matching any of them is correct
    kind: str = "math"  # "math" | "choice" (a letter)
    tolerance: float = 0.0  # a number within so much of the answer is right too (OlympiadBench)


@dataclass(frozen=True)
class Prompt:
    """A problem with its budget drawn and its chat template applied.

    Example: Prompt(group=1207, problem=..., mode="exact", budget=64, token_ids=(1, 52, ...))
    """

    group: int  # epoch * rows + row: unique in a run, so a problem met again is another group
    problem: Problem
    mode: str  # one of MODES
    budget: int  # n_gold in tokens; 0 with mode "none"
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """What the rollout engine returns for one request.

    `token_ids` are the generated tokens only, the EOS included when one was sampled; `logprobs`
    are float32 log-probabilities under the tempered, full distribution, one a token.
    Example: Completion([17, 9, 2], [-0.1, -1.2, -0.01], truncated=False)
    """

    token_ids: list[int]
    logprobs: list[float]
    truncated: bool  # stopped by the token limit, no EOS


@dataclass(frozen=True)
class Score:
    """A graded answer. `reason` is one of grading.REASONS; a timeout is never a silent "wrong".

    Example: Score(1.0, "correct", "17")
    """

    value: float  # 1.0 correct, 0.0 otherwise
    reason: str
    extracted: str | None  # the text that was compared, None when none was found


@dataclass(frozen=True)
class Rollout:
    """One graded sample of one prompt."""

    prompt: Prompt
    sample: int  # k in [0, K)
    completion: Completion
    text: str  # decoded completion, special tokens kept
    score: Score


@dataclass(frozen=True)
class Advantages:
    """Reward terms of a step, float32 [N] in the order of the rollouts: kernels.lcpo_advantage."""

    correctness: torch.Tensor
    length: torch.Tensor
    reward: torch.Tensor
    advantage: torch.Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Variable-length sequences laid end to end; no padding.

    Example, two sequences "p p r r" and "p r": input_ids has T = 6, cu_seqlens = [0, 4, 6],
    position_ids = [0,1,2,3, 0,1]; the hidden states that predict response tokens are
    rows [1, 2, 4] (R = 3), their targets are the tokens at [2, 3, 5], seq_ids = [0, 0, 1].

    With `prefix`, prompts stand once and come first. "p p" with the responses "r r" and "r": T = 5,
    cu_seqlens = [0, 2, 4, 5], prefix = [-1, 0, 0], position_ids = [0,1, 2,3, 2], rows [1, 2, 1].
    """

    input_ids: torch.Tensor  # int64 [T]
    position_ids: torch.Tensor  # int64 [T], restarts at 0 in each sequence
    cu_seqlens: torch.Tensor  # int32 [B + 1], or [prompts + B + 1] with prefix; on the CPU
    max_seqlen: int
    prefix: torch.Tensor | None  # int32 [prompts + B] on the CPU, see kernels.varlen_attention
    rows: torch.Tensor  # int64 [R], positions whose hidden state predicts a response token
    targets: torch.Tensor  # int64 [R]
    seq_ids: torch.Tensor  # int32 [R], sequence of each response token, 0 <= id < B
    samples: torch.Tensor  # int64 [B], index of each sequence among the N samples of the step
    seq_weight: torch.Tensor  # float32 [B], weight of each of its tokens in the loss (see packing)


@dataclass
class StepStats:
    """Everything one step reports. Scalars only, so a step has one device sync, at its end."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    rollouts: list[Rollout] = field(default_factory=list)
    advantages: Advantages | None = None
    skipped: frozenset[int] = frozenset()  # indices of rollouts whose update was not finite
