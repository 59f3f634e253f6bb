"""The configuration: frozen dataclasses, one a hydra group, checked before anything loads.

`parse_config` turns the composed mapping into a `Config`. Unknown keys, wrong types, nan, values
out of range and contradictions raise ConfigError with the dotted key named. Defaults live in conf/,
not here, so every field is required and `conf/` is the one place to read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainer.settings import ConfigError, Count, NonNeg, Pos, PosInt, Share, Signed, build_settings

__all__ = ["Config", "ConfigError", "parse_config"]  # and the settings of each group


@dataclass(frozen=True)
class ModelSettings:
    path: str
    """HF folder (config.json, *.safetensors, tokenizer.json), a run folder, or a Hub id."""
    device: Literal["auto", "cpu", "cuda"]
    """auto takes CUDA when there is a device."""
    dtype: Literal["auto", "float32", "bfloat16"]
    """Compute type; masters and moments are always float32. auto: bfloat16 where the hardware
    multiplies it."""


@dataclass(frozen=True)
class DataSettings:
    train: str
    """`embedded`, a .jsonl/.json/.parquet file, or `hub:owner/name[:split]`."""
    heldout: str
    """What evaluation draws from, in the same forms; `embedded` shares no problem with `train`."""
    question_key: str
    answer_key: str
    kind: Literal["math", "choice"]
    """How answers are compared."""
    embedded_rows: PosInt
    """Problems in an epoch of the embedded task."""
    max_prompt_tokens: PosInt
    """Longer prompts are dropped and counted, never cut."""
    require_think: bool
    """No `</think>` means incorrect. Off for models that do not write the tag."""


@dataclass(frozen=True)
class GradingSettings:
    symbolic: bool
    """Ask math-verify where the exact parser cannot decide, see docs/grading.md."""
    workers: PosInt
    timeout_seconds: Pos
    memory_mib: PosInt
    """Of an answer and of a worker; one that needs more is killed and replaced."""
    alarm_share: Share
    """More samples of a step that could not be graded are said loudly."""


@dataclass(frozen=True)
class BudgetSettings:
    mode: Literal["exact", "max", "dual", "none"]
    """dual: each prompt is exact or max with probability 1/2."""
    law: Literal["uniform", "log_uniform"]
    min: PosInt
    max: PosInt
    """Tokens, both inclusive."""
    skip: tuple[PosInt, ...] | None
    """Budgets never drawn, so that an evaluation can ask for what training did not; null: none."""


@dataclass(frozen=True)
class RewardSettings:
    kind: Literal["linear", "sigmoid"]
    """Formula family, see kernels.lcpo_advantage."""
    alpha_exact: NonNeg
    """Reward per token away from the budget, exact rows."""
    alpha_max: NonNeg
    """The same for max rows."""
    delta: Signed
    """Reward of a correct max row at its budget, before the clip: below 0, it ends before it."""
    alpha_factor: Pos
    """Multiplies both alphas: 1 for the paper's budgets; more for short ones, where a token too
    many would else cost less than the accuracy it buys."""


@dataclass(frozen=True)
class RolloutSettings:
    engine: Literal["own", "vllm"]
    """vllm: trainer/rollout/vllm.py, for those who have it; it holds the weights a second time."""
    prompts: PosInt
    """Prompts a step."""
    samples: PosInt
    """Samples a prompt: the group."""
    temperature: Pos
    """Divides the logits in sampling, policy, old and reference log-probs and entropy alike."""
    top_p: Share
    """1 in training: another value samples from a distribution that is not the policy's."""
    top_k: Count
    """0 (off) in training, for the same reason."""
    max_response_tokens: PosInt
    batch_size: PosInt
    """Sequences decoded at once."""
    page_size: PosInt
    """Tokens in a page of the KV cache; flash-attn on CUDA wants a multiple of 256."""
    pages: Count
    """Pages of the KV cache, which bound its memory; 0 has room for batch_size full sequences.
    When they run out, the youngest sequences wait and are computed again."""
    batch_invariant: bool
    """Bit for bit the same log-probs in rollout and trainer, CPU, float32: docs/rollout.md."""
    cuda_graphs: bool
    """Decode steps as CUDA graphs, see trainer/rollout/graphs.py. Not yet proven on a GPU: off."""


@dataclass(frozen=True)
class AlgorithmSettings:
    estimator: Literal["grpo", "dr_grpo", "rloo"]
    updates: PosInt
    """Optimizer steps a rollout; the prompts are split evenly among them."""
    clip_low: Share
    clip_high: NonNeg
    """PPO: the ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    kl_coef: NonNeg
    """Weight of the k3 KL to the frozen start; 0 holds no reference model."""
    kl_grad: Literal["k3", "corrected"]
    """Gradient of the KL term: k3's own (as L1), or the importance-corrected one."""
    entropy_coef: NonNeg
    """Entropy bonus: 0.001 in the public code by inheritance, 0 in the paper."""
    normaliser: Literal["token_mean", "seq_mean", "constant", "sum_of_microbatch_means"]
    """What the summed loss is divided by, see trainer/packing.py."""
    old_logprob: Literal["trainer", "rollout"]
    """Before the update: computed again, or the rollout's own, given rollout.batch_invariant."""
    drop_truncated: bool
    """Leave truncated samples out of the loss; off as in the paper. They are counted either way."""


@dataclass(frozen=True)
class OptimSettings:
    lr: Pos
    warmup_steps: Count
    """Linear, in optimizer steps."""
    half_life: Count
    """Optimizer steps in which the rate halves; 0: constant. A run can be made longer."""
    beta1: Share
    beta2: Share
    eps: Pos
    weight_decay: NonNeg
    grad_clip: Pos
    """Global norm, after the last micro-batch."""
    max_skips: PosInt
    """So many non-finite optimizer steps in a row stop the run, before saving."""


@dataclass(frozen=True)
class TrainSettings:
    steps: PosInt
    parallel: Literal["replicated", "fsdp"]
    """Whether each of several processes (docs/distributed.md) holds all masters, moments and
    gradients, or a part of them."""
    micro_batch_tokens: PosInt
    """Packed tokens a forward and backward pass."""
    share_prompts: Literal["auto", True, False]
    """The samples of a group attend to one copy of their prompt; gradients are the same. auto: when
    that saves a twentieth of the tokens."""
    debug: bool
    """Assert ratio == 1 on the first mini-batch."""
    self_check_every: Count
    """Steps between checks of the kernels against the torch reference; 0 never checks."""


@dataclass(frozen=True)
class MemorySettings:
    activations: Literal["auto", "none", "full"]
    """Layers that make their activations again in the backward pass: as few as fit, none, all."""
    budget_gib: NonNeg
    """What auto lets the activations of a micro-batch take; 0: four fifths of what is free beside
    gradients and moments."""


@dataclass(frozen=True)
class EvaluateSettings:
    every: Count
    """Steps between evaluations; 0 means only before and after."""
    budgets: tuple[PosInt, ...]
    problems: PosInt
    samples: PosInt
    """Samples a problem and budget."""
    temperature: NonNeg
    top_p: Share
    limit_factor: Pos
    """Response limit as a multiple of the budget."""


@dataclass(frozen=True)
class CheckpointSettings:
    every: PosInt
    """Steps between saves; the last step is always saved."""
    keep: PosInt
    max_failures: PosInt
    """So many failed saves in a row stop the run."""


@dataclass(frozen=True)
class LogSettings:
    tensorboard: bool
    wandb: str | None
    """wandb project, when the package is installed."""


@dataclass(frozen=True)
class ResumeSettings:
    checkpoint: str
    """auto: continue the run folder's newest; never: refuse if there is one; or a folder."""
    allow_older: bool
    """Pass over damaged ones to the newest that is whole; what was done behind it is lost."""
    allow_changes: tuple[str, ...] | None
    """Settings, by the start of their key, that may differ from the checkpoint's; null: none."""


@dataclass(frozen=True)
class Config:
    name: str
    """Names the run folder."""
    scale: Literal["embedded", "paper"]
    dir: str
    """Run folder."""
    seed: Count
    threads: Count
    """CPU threads; 0 leaves torch's choice."""
    model: ModelSettings
    data: DataSettings
    grading: GradingSettings
    budget: BudgetSettings
    reward: RewardSettings
    rollout: RolloutSettings
    algorithm: AlgorithmSettings
    optim: OptimSettings
    train: TrainSettings
    memory: MemorySettings
    evaluate: EvaluateSettings
    checkpoint: CheckpointSettings
    log: LogSettings
    resume: ResumeSettings


def parse_config(raw: dict[str, Any]) -> Config:
    """The checked configuration; raises ConfigError naming the key."""
    config = build_settings(Config, raw, "")
    _cross_check(config)
    return config


def _cross_check(config: Config) -> None:
    """Settings that are fine alone and contradict each other."""
    rollout, algorithm, budget = config.rollout, config.algorithm, config.budget
    longest = config.data.max_prompt_tokens + rollout.max_response_tokens
    for broken, message in (
        (budget.min > budget.max, f"budget.min: {budget.min} is above budget.max={budget.max}"),
        (
            sum(budget.min <= b <= budget.max for b in set(budget.skip or ()))
            > budget.max - budget.min,
            f"budget.skip: leaves no budget from {budget.min} to {budget.max}",
        ),
        (
            budget.mode != "none" and budget.max > rollout.max_response_tokens,
            f"budget.max: {budget.max} cannot be reached with "
            f"rollout.max_response_tokens={rollout.max_response_tokens}",
        ),
        (
            algorithm.estimator in ("grpo", "rloo") and rollout.samples < 2,
            f"rollout.samples: a group of {rollout.samples} has no spread: {algorithm.estimator}",
        ),
        (
            rollout.prompts % algorithm.updates != 0,
            f"algorithm.updates: {algorithm.updates} must divide rollout.prompts={rollout.prompts}",
        ),
        (
            rollout.top_p != 1.0 or rollout.top_k != 0,
            f"rollout.top_p: training samples from the policy itself, so top_p must be 1 and top_k "
            f"0 (got {rollout.top_p}, {rollout.top_k}); evaluation has its own evaluate.top_p",
        ),
        (
            algorithm.old_logprob == "rollout" and not rollout.batch_invariant,
            "algorithm.old_logprob: rollout needs rollout.batch_invariant=true, for a ratio of 1",
        ),
        (
            rollout.engine == "vllm" and (rollout.batch_invariant or rollout.cuda_graphs),
            "rollout.engine: vllm has no rollout.batch_invariant and no rollout.cuda_graphs",
        ),
        (
            config.train.micro_batch_tokens < longest,
            f"train.micro_batch_tokens: {config.train.micro_batch_tokens} is below "
            "data.max_prompt_tokens + rollout.max_response_tokens, one sequence must fit",
        ),
        (algorithm.clip_low >= 1, f"algorithm.clip_low: must be below 1, got {algorithm.clip_low}"),
        (config.optim.beta1 >= 1, f"optim.beta1: must be below 1, got {config.optim.beta1}"),
        (config.optim.beta2 >= 1, f"optim.beta2: must be below 1, got {config.optim.beta2}"),
        (config.evaluate.top_p == 0, "evaluate.top_p: must be more than 0, got 0"),
    ):
        if broken:
            raise ConfigError(message)
