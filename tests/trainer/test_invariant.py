"""rollout.batch_invariant: rollout and trainer agree bit for bit on the CPU in float32."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from rollout_helpers import WARM, engine_of

import kernels
from tests.helpers import tiny_config, tiny_decoder, tiny_trainer
from trainer import preflight, step
from trainer.config import ConfigError
from trainer.model.invariant import BlockLinear, block_linear, make_batch_invariant
from trainer.rollout import Request

COMPILED = kernels.active_backends()["paged_decode_attention"] == "cpp"
compiled = pytest.mark.skipif(not COMPILED, reason="the compiled library is not built")
EXACT = "rollout.batch_invariant=true"


@pytest.mark.parametrize(("inner", "outer"), [(32, 64), (64, 32), (320, 128), (7, 261)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_does_not_depend_on_the_others(inner, outer, bias):
    """One row, less than a block, a block, one more, several; any place within a block."""
    generator = torch.Generator().manual_seed(0)
    x, weight, b = (
        torch.randn(shape, generator=generator) for shape in ((200, inner), (outer, inner), outer)
    )
    b = b if bias else None
    whole = block_linear(x, weight, b)
    torch.testing.assert_close(whole, F.linear(x, weight, b))
    for rows in (1, 2, 31, 32, 33, 128):
        some = torch.randperm(200, generator=generator)[:rows]
        assert torch.equal(block_linear(x[some], weight, b), whole[some])


def test_gradients_are_those_of_a_linear_layer():
    generator = torch.Generator().manual_seed(1)
    plain = torch.nn.Linear(12, 9).double()
    block = copy.deepcopy(plain)
    block.__class__ = BlockLinear
    x = torch.randn(45, 12, generator=generator, dtype=torch.float64)
    upstream = torch.randn(45, 9, generator=generator, dtype=torch.float64)
    grads = []
    for layer in (plain, block):
        mine = x.clone().requires_grad_()
        layer(mine).backward(upstream)
        grads.append([mine.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(grads[1], grads[0])


@compiled
def test_log_probs_are_equal_whatever_the_batch_pages_and_preemption():
    """Bits, not closeness; a control is below."""
    model = tiny_decoder()
    make_batch_invariant(model)
    requests = [Request(tuple(range(20, 25 + k % 9)), k, 3 + k % 17) for k in range(24)]
    usual = engine_of(model, batch_invariant=True).generate(requests, WARM)
    for settings in (
        {"batch_size": 1},
        {"batch_size": 5, "page_size": 3},
        {"pages": 9, "page_size": 4},
    ):
        engine = engine_of(model, batch_invariant=True, **settings)
        assert engine.generate(requests, WARM) == usual
        assert (engine.stats.preempted > 0) == ("pages" in settings)
    backwards = engine_of(model, batch_invariant=True).generate(requests[::-1], WARM)
    assert backwards[::-1] == usual


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


def test_usually_the_gap_is_rounding(tiny_base):
    """The control: a gap that is always 0 would say nothing."""
    trainer = tiny_trainer(tiny_base)
    gaps = [step.train_step(trainer).metrics["policy/rollout_gap_max"] for _ in range(3)]
    assert 0 < max(gaps) < 1e-5


@compiled
def test_rollout_log_probs_save_the_trainers_pass(tiny_base):
    changes = ("algorithm.old_logprob=rollout", "algorithm.kl_coef=0", "train.self_check_every=0")
    trainer = tiny_trainer(tiny_base, EXACT, *changes)
    passes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args: passes.append(torch.is_grad_enabled())
    )
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
