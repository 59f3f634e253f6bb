"""The training step: log-probs, gradients and denominators do not depend on the packing."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from tests.helpers import gradient_distance, tiny_trainer, write_tiny_base
from trainer import lcpo, step
from trainer.data.stream import Cursor
from trainer.packing import NORMALISERS
from trainer.step import Trainer
from trainer.types import PackedBatch, Rollout

Gradients = dict[str, torch.Tensor]


def weights(trainer: Trainer) -> Gradients:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def equal(a: Gradients, b: Gradients) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def change(trainer: Trainer, group: str, **values: Any) -> None:
    """Other settings for the same trainer, cross checks left aside."""
    settings = dataclasses.replace(getattr(trainer.config, group), **values)
    trainer.config = dataclasses.replace(trainer.config, **{group: settings})


def draw(trainer: Trainer) -> list[Rollout]:
    prompts, _, _ = trainer.stream.take(trainer.cursor, trainer.config.rollout.prompts)
    return step.generate(trainer, prompts)


def off_policy(trainer: Trainer) -> None:
    """Moves the weights away from the reference: without it KL and its gradient are zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.02, generator=generator)
            parameter += noise * parameter.std()


def gradients(trainer: Trainer, rollouts: list[Rollout]) -> tuple[Gradients, int]:
    """Gradient of one update over `rollouts`, and how many micro-batches it took."""
    config, n_total = trainer.config, step.count(trainer, rollouts).n_total
    advantages = lcpo.advantages(rollouts, n_total, config.reward, config.algorithm)
    (batches,) = step.pack_updates(trainer, rollouts)
    for batch in batches:
        micro = step.with_old_logprobs(trainer, batch, rollouts, first=False)
        loss, _ = step.policy_loss(trainer, micro, advantages)
        loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return found, len(batches)


def gradients_in(trainer: Trainer, rollouts: list[Rollout], micro_batches: int) -> Gradients:
    """The same with micro-batches so small that it takes as many as asked."""
    sizes = [len(r.prompt.token_ids) + len(r.completion.token_ids) for r in rollouts]
    for tokens in range(max(sizes), sum(sizes) + 1):
        change(trainer, "train", micro_batch_tokens=tokens)
        if len(step.pack_updates(trainer, rollouts)[0]) == micro_batches:
            break
    found, taken = gradients(trainer, rollouts)
    assert taken == micro_batches
    return found


def distance(a: Gradients, b: Gradients) -> float:
    return gradient_distance(a.values(), (b[name] for name in a))


@pytest.fixture
def one_update(tiny_base) -> Trainer:
    trainer = tiny_trainer(tiny_base, "algorithm.updates=1", "algorithm.entropy_coef=0.01")
    off_policy(trainer)
    return trainer


# Numbers that must not depend on the packing


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_t14_the_ratio_starts_at_exactly_one(dtype, gap, tiny_base):
    # Of seed 0, the samples of the first two groups are all as long as each other: no first update.
    trainer = tiny_trainer(tiny_base, f"model.dtype={dtype}", "seed=1")
    for _ in range(3):
        found = step.train_step(trainer).metrics
        assert found["policy/ratio_dev_first"] == 0.0
        assert found["policy/ratio_dev_max"] > 1e-3  # the second update is off policy
        assert found["policy/rollout_gap_max"] < gap


def test_t13_packed_logprobs_are_those_of_one_by_one(one_update):
    rollouts = draw(one_update)
    change(one_update, "train", micro_batch_tokens=10_000)
    ((together,),) = step.pack_updates(one_update, rollouts)
    logprob, entropy = logprobs(one_update, together)
    alone = []
    for index in together.samples.tolist():
        ((batch,),) = step.pack_updates(one_update, [rollouts[index]])
        alone.append(logprobs(one_update, batch))
    expected = torch.cat([lp for lp, _ in alone]), torch.cat([h for _, h in alone])
    torch.testing.assert_close((logprob, entropy), expected, rtol=1e-6, atol=1e-6)


def logprobs(trainer: Trainer, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return step.logprobs(trainer.config, trainer.model, batch, trainer.engine.vocab_size)


@pytest.mark.parametrize("normaliser", ["token_mean", "seq_mean", "constant"])
def test_t12_the_gradient_does_not_depend_on_micro_batches_or_order(one_update, normaliser):
    change(one_update, "algorithm", normaliser=normaliser)
    rollouts = draw(one_update)
    whole = gradients_in(one_update, rollouts, 1)
    for count in (2, 5):
        assert distance(whole, gradients_in(one_update, rollouts, count)) < 1e-6
        random.Random(count).shuffle(rollouts)
        assert distance(whole, gradients_in(one_update, rollouts, count)) < 1e-6


def test_the_mean_of_each_micro_batch_depends_on_the_packing(one_update):
    change(one_update, "algorithm", normaliser="sum_of_microbatch_means")
    rollouts = draw(one_update)
    whole, cut = (gradients_in(one_update, rollouts, count) for count in (1, 5))
    assert distance(whole, cut) > 0.5  # five means instead of one


def test_a_prompt_that_stands_once_changes_no_gradient(one_update):
    """Nor a log-prob, and to the last bit: the compiled attention sees the same keys."""
    rollouts = draw(one_update)
    change(one_update, "train", micro_batch_tokens=10_000)
    found = {}
    for shared in (False, True):
        change(one_update, "train", share_prompts=shared)
        ((batch,),) = step.pack_updates(one_update, rollouts)
        assert (batch.prefix is not None) == shared
        found[shared] = len(batch.input_ids), logprobs(one_update, batch)[0]
        for count in (1, 3):
            found[shared] += (gradients_in(one_update, rollouts, count),)
        change(one_update, "train", micro_batch_tokens=10_000)
    prompts = {r.prompt.group: len(r.prompt.token_ids) for r in rollouts}
    copies = sum(len(r.prompt.token_ids) for r in rollouts) - sum(prompts.values())
    assert found[False][0] - found[True][0] == copies > 0
    torch.testing.assert_close(found[True][1], found[False][1], rtol=1e-6, atol=1e-6)
    for shared in found[True][2:]:
        assert distance(found[False][2], shared) < 1e-6


# What is in the loss


def test_only_rows_that_predict_response_tokens_get_a_gradient(one_update):
    hidden = []
    rollouts = draw(one_update)
    change(one_update, "train", micro_batch_tokens=10_000, share_prompts=False)
    one_update.model.register_forward_hook(lambda module, args, out: hidden.append(out))
    config, n_total = one_update.config, step.count(one_update, rollouts).n_total
    advantages = lcpo.advantages(rollouts, n_total, config.reward, config.algorithm)
    ((batch,),) = step.pack_updates(one_update, rollouts)
    micro = step.with_old_logprobs(one_update, batch, [], first=True)
    loss, _ = step.policy_loss(one_update, micro, advantages)
    hidden[-1].retain_grad()
    loss.backward()
    touched = hidden[-1].grad.abs().sum(1).nonzero().squeeze(1)
    expected, start = [], 0
    for rollout in (rollouts[i] for i in batch.samples.tolist()):
        prompt, response = len(rollout.prompt.token_ids), len(rollout.completion.token_ids)
        expected += range(start + prompt - 1, start + prompt + response - 1)
        start += prompt + response
    assert touched.tolist() == expected


def test_vocabulary_rows_beyond_the_tokenizer_are_out_of_the_loss(one_update):
    rollouts, head = draw(one_update), one_update.model.lm_head.weight
    size = one_update.engine.vocab_size
    assert size < len(head)
    before, _ = gradients(one_update, rollouts)
    assert not before["lm_head.weight"][size:].any()
    assert before["lm_head.weight"][:size].abs().sum(1).all()
    with torch.no_grad():
        head[size:, 0] = 100.0  # a bias: with these rows in the softmax nothing else had a chance
    after, _ = gradients(one_update, rollouts)
    assert equal(before, after)


def test_a_pad_token_that_is_eos_changes_nothing(tiny_base, tmp_path):
    same_id = write_tiny_base(tmp_path / "base", pad_is_eos=True)
    usual, other = tiny_trainer(tiny_base), tiny_trainer(same_id)
    assert other.tokenizer.pad_token_id == other.tokenizer.eos_token_id
    assert step.train_step(usual).metrics == step.train_step(other).metrics
    assert equal(weights(usual), weights(other))


# Degenerate batches and broken gradients


def test_t11_equal_rewards_leave_the_weights_alone(tiny_base):
    trainer = tiny_trainer(tiny_base, "budget.mode=none", "algorithm.kl_coef=0")
    before = weights(trainer)
    found = step.train_step(trainer)
    assert not found.advantages.reward.any()  # noise is never right
    assert found.metrics["optim/grad_norm"] == 0.0
    assert found.metrics["policy/loss"] == 0.0
    assert equal(weights(trainer), before)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_t11_nothing_left_after_dropping_truncated_samples(normaliser, tiny_base):
    trainer = tiny_trainer(
        tiny_base, "algorithm.drop_truncated=true", f"algorithm.normaliser={normaliser}"
    )
    with torch.no_grad():
        trainer.model.lm_head.weight[trainer.engine.eos_id, 0] = -100.0
    before = weights(trainer)
    found = step.train_step(trainer).metrics
    assert found["length/truncated"] == 1.0
    assert all(torch.isfinite(torch.tensor(value)) for value in found.values())
    assert equal(weights(trainer), before)
    assert trainer.step == 1 and trainer.cursor == Cursor(0, 4)


def test_truncated_samples_are_trained_on_unless_dropped(tiny_base):
    trainer = tiny_trainer(tiny_base, "algorithm.updates=1")
    rollouts = draw(trainer)
    cut = [i for i, r in enumerate(rollouts) if r.completion.truncated]
    assert 0 < len(cut) < len(rollouts)

    def packed(drop: bool) -> tuple[list[int], float]:
        change(trainer, "algorithm", drop_truncated=drop)
        (batches,) = step.pack_updates(trainer, rollouts)
        samples = [i for batch in batches for i in batch.samples.tolist()]
        return samples, sum(float(b.seq_weight[b.seq_ids.long()].sum()) for b in batches)

    samples, total = packed(drop=False)
    assert sorted(samples) == list(range(len(rollouts))) and total == pytest.approx(1)
    samples, total = packed(drop=True)
    assert sorted(samples) == [i for i in range(len(rollouts)) if i not in cut]
    assert total == pytest.approx(1)  # the denominator counts what is in the loss


def test_half_of_the_updates_may_be_empty(tiny_base):
    trainer = tiny_trainer(tiny_base, "algorithm.drop_truncated=true")
    rollouts = draw(trainer)
    half = len(rollouts) // 2
    for number, rollout in enumerate(rollouts):
        cut = dataclasses.replace(rollout.completion, truncated=number < half)
        rollouts[number] = dataclasses.replace(rollout, completion=cut)
    empty, full = step.pack_updates(trainer, rollouts)
    assert empty == [] and full


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_t10_a_gradient_that_is_not_finite_skips_the_update(value, tiny_base):
    trainer = tiny_trainer(tiny_base, "algorithm.updates=1")
    before = weights(trainer)
    parameter = trainer.model.model.layers[1].mlp.up_proj.weight
    spoil = parameter.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), value))
    found = step.train_step(trainer).metrics
    spoil.remove()
    assert found["optim/skipped"] == 1
    assert equal(weights(trainer), before)
    moments = trainer.optimizer.adamw.state[parameter]
    assert not moments["step"] and not moments["exp_avg"].any() and not trainer.optimizer.updates
    assert trainer.step == 1 and trainer.cursor == Cursor(0, 4)  # its prompts do not come again
    assert all(p.grad is None for p in trainer.model.parameters())
    found = step.train_step(trainer).metrics
    assert found["optim/skipped"] == 1 and trainer.optimizer.updates == 1
    assert not equal(weights(trainer), before)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_t10_too_many_skips_in_a_row_stop_the_run(tiny_base):
    trainer = tiny_trainer(tiny_base, "optim.max_skips=3", "algorithm.updates=2")
    trainer.model.model.norm.weight.register_hook(lambda grad: grad * torch.nan)
    step.train_step(trainer)
    with pytest.raises(FloatingPointError, match="4 optimizer steps in a row"):
        step.train_step(trainer)
    assert trainer.step == 1  # the failed step is not committed
