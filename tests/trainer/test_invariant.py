"""rollout.batch_invariant: rollout and trainer agree bit for bit on the CPU in float32."""

from __future__ import annotations

import pytest
import torch
from rollout_helpers import WARM, engine_of
from test_fused import MODELS, decoder

import kernels
from tests.helpers import tiny_config, tiny_trainer
from trainer import preflight, step
from trainer.config import ConfigError
from trainer.model import Decoder, ModelConfig, PackedAttention, take_rows
from trainer.model.config import RopeConfig
from trainer.model.decoder import Rotary
from trainer.packing import pack
from trainer.rollout import Request

COMPILED = kernels.active_backends()["paged_decode_attention"] == "cpp"
compiled = pytest.mark.skipif(not COMPILED, reason="the compiled library is not built")
EXACT = "rollout.batch_invariant=true"
# A head of three tiles of logits, the last one short; sums of more than one chain.
LARGE = ModelConfig("llama", 2500, 300, 600, 2, 4, 2, 32)


@compiled
@pytest.mark.parametrize("name", [*MODELS, "large"])
def test_the_trainers_log_probs_are_the_rollouts(name):
    """Bits, in every packing: prompts that stand once or a time a sample, all together or alone."""
    model = decoder(name) if name in MODELS else Decoder(LARGE)
    if name == "large":
        model.init_weights(0)
    vocab_size = model.head_weight.shape[0] - 5
    requests = [
        Request(tuple(range(40, 45 + g)), seed, 3 + seed) for g in range(9) for seed in (g, 66)
    ]
    engine = engine_of(model, 7, page_size=4)
    engine.vocab_size = vocab_size
    found = engine.generate(requests, WARM)
    prompts, responses = [r.token_ids for r in requests], [c.token_ids for c in found]
    groups = [k // 2 for k in range(len(requests))]
    every = [*range(len(requests))]
    for batch, shared in ((every, True), (every, False), ([5, 4, 17], False), ([9], False)):
        packed = pack(
            [prompts[i] for i in batch],
            [responses[i] for i in batch],
            torch.ones(len(batch)),
            batch,
            groups=[groups[i] for i in batch] if shared else None,
        )
        scale = model.config.attention_scale
        attend = PackedAttention(packed.cu_seqlens, packed.max_seqlen, scale, prefix=packed.prefix)
        hidden = take_rows(model(packed.input_ids, packed.position_ids, attend), packed.rows)
        logprob, _ = kernels.linear_logprob(
            hidden,
            model.head_weight,
            packed.targets,
            temperature=WARM.temperature,
            vocab_size=vocab_size,
        )
        want = [x for i in packed.samples.tolist() for x in found[i].logprobs]
        assert logprob.tolist() == want


POSITIONS = torch.arange(700)
ANGLES = Rotary(12, RopeConfig())(POSITIONS)
HEADS = torch.randn(2, 700, 3, 12, generator=torch.Generator().manual_seed(0))
FLAT = HEADS.flatten(2)
WIDE = torch.randn(2500, 36, generator=torch.Generator().manual_seed(1))
# Widths that fill no register of 16 lanes.
ROWS = {
    "rotary": lambda at: Rotary(12, RopeConfig())(POSITIONS[at]),
    "rope": lambda at: kernels.rope(*HEADS[:, at], *(x[at] for x in ANGLES)),
    "rms_norm": lambda at: kernels.rms_norm(FLAT[0, at], FLAT[1, 0], 1e-6, FLAT[1, at]),
    "swiglu": lambda at: (kernels.swiglu(*FLAT[:, at]),),
    "linear": lambda at: (kernels.linear(FLAT[0, at], WIDE),),
    "linear_logprob": lambda at: kernels.linear_logprob(
        FLAT[0, at], WIDE, 3 * POSITIONS[at], temperature=0.7, vocab_size=2400
    ),
}


@compiled
@pytest.mark.parametrize("op", ROWS)
def test_a_row_of_an_op_does_not_depend_on_the_others(op):
    """Attention: tests/kernels/test_paged_decode_attention.py, test_shared_prefix.py."""
    whole = ROWS[op](POSITIONS)
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 5, 7, 33, 64, 511):
        at = torch.randperm(700, generator=generator)[:rows]
        for some, every in zip(ROWS[op](at), whole, strict=True):
            assert some.equal(every[at])


@compiled
@pytest.mark.parametrize("old", ["trainer", "rollout"])
def test_the_gap_to_the_trainer_is_zero_and_the_ratio_starts_at_one(old, tiny_base):
    # With seed 0 the three samples of a group are as good as each other: nothing is updated.
    trainer = tiny_trainer(tiny_base, EXACT, f"algorithm.old_logprob={old}", "seed=1")
    assert trainer.config.train.debug  # asserts ratio == 1
    for _ in range(3):
        found = step.train_step(trainer).metrics
        assert found["policy/rollout_gap_max"] == 0.0
        assert found["policy/ratio_dev_first"] == 0.0
        assert found["policy/ratio_dev_max"] > 1e-3


def test_between_other_kernels_the_gap_is_rounding(tiny_base):
    """The control: a gap that is always 0 would say nothing."""
    trainer = tiny_trainer(tiny_base)
    with kernels.override("paged_decode_attention=torch"):
        gaps = [step.train_step(trainer).metrics["policy/rollout_gap_max"] for _ in range(3)]
    assert 0 < max(gaps) < 1e-5


@compiled
def test_rollout_log_probs_save_the_trainers_pass(tiny_base, monkeypatch):
    changes = ("algorithm.old_logprob=rollout", "algorithm.kl_coef=0", "train.self_check_every=0")
    trainer = tiny_trainer(tiny_base, EXACT, *changes)
    passes, forward = [], Decoder.forward

    def counted(*args):
        passes.append(torch.is_grad_enabled())
        return forward(*args)

    monkeypatch.setattr(Decoder, "forward", counted)
    trainer.on_phase = lambda phase, done, total: passes.append(phase)
    step.train_step(trainer)
    start = passes.index("old_logprob")
    assert False not in passes[start:]  # no forward pass without gradients any more


def test_t18_what_cannot_be_exact_is_refused(tiny_base, tmp_path):
    with pytest.raises(ConfigError, match=r"^algorithm\.old_logprob: .*batch_invariant"):
        tiny_config(tiny_base, tmp_path, "algorithm.old_logprob=rollout")
    with pytest.raises(ConfigError, match=r"^rollout\.batch_invariant: .*cpu bfloat16"):
        tiny_trainer(tiny_base, EXACT, "model.dtype=bfloat16")
    with (
        kernels.override("varlen_attention=torch"),
        pytest.raises(ConfigError, match=r"^rollout\.batch_invariant: .*varlen_attention"),
    ):
        preflight.check_batch_invariant(tiny_config(tiny_base, tmp_path, EXACT))
