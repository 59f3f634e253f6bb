"""T19: memory runs out in a micro-batch; the update is made again in halves, with its gradient."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch

from tests.helpers import gradient_distance, make_run, run_here, tiny_trainer
from trainer import loop, step
from trainer.optim import Optimizer
from trainer.record import METRICS, read_rows
from trainer.recovery import is_out_of_memory
from trainer.step import Trainer

Gradients = list[list[torch.Tensor]]  # of each optimizer step
SHARED = "train.share_prompts="
SEED = "seed=1"  # of 0, the samples of the first groups are all as long as each other: no gradient


def fail_forward(trainer: Trainer, patch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Has the forward passes of these numbers run out of memory."""
    policy_loss, called = step.policy_loss, [0]

    def failing(*parts):
        called[0] += 1
        if called[0] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return policy_loss(*parts)

    patch.setattr(step, "policy_loss", failing)


def fail_backward(trainer: Trainer, patch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """The same of backward passes, in their middle: half of the gradients have been added."""
    called = [0]

    def failing(gradient):
        called[0] += 1
        if called[0] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.working.model.layers[0].input_layernorm.weight.register_hook(failing)


def never(trainer: Trainer, patch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """The control."""


def gradients_of_a_step(
    trainer: Trainer, fail: Callable[..., None], calls: set[int]
) -> tuple[Gradients, step.StepStats]:
    """What each optimizer step of one train_step is given."""
    found: Gradients = []
    take_step = Optimizer.step

    def look_and_step(optimizer):
        found.append([p.grad.clone() for p in optimizer.parameters])
        return take_step(optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimizer, "step", look_and_step)
        fail(trainer, patch, calls)
        return found, step.train_step(trainer)


def distance(a: Gradients, b: Gradients) -> float:
    return gradient_distance(*(itertools.chain.from_iterable(updates) for updates in (a, b)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("fail", [fail_forward, fail_backward])
def test_t19_the_gradient_is_that_of_whole_micro_batches(fail, shared, dtype, tiny_base):
    changes = (SEED, f"{SHARED}{shared}", f"model.dtype={dtype}", "optim.lr=1e-9")
    whole, usual = gradients_of_a_step(tiny_trainer(tiny_base, *changes), never, set())
    trainer = tiny_trainer(tiny_base, *changes)
    halved, stats = gradients_of_a_step(trainer, fail, {2})  # one micro-batch has been added
    assert len(whole) == len(halved) == 2
    assert distance(whole, halved) < (1e-6 if dtype == "float32" else 2e-2)
    assert stats.seconds["memory/halved"] > 0 and usual.seconds["memory/halved"] == 0
    assert stats.metrics["policy/ratio_dev_first"] == 0.0
    assert stats.metrics["policy/loss"] == pytest.approx(usual.metrics["policy/loss"], abs=1e-2)
    assert trainer.step == 1 and not trainer.optimizer.skipped


def test_t19_without_dropping_the_gradient_it_would_be_counted_twice(tiny_base, monkeypatch):
    """The negative control of the test above."""
    whole, _ = gradients_of_a_step(tiny_trainer(tiny_base, SEED), never, set())
    monkeypatch.setattr(torch.nn.Module, "zero_grad", lambda *_, **__: None)
    halved, _ = gradients_of_a_step(tiny_trainer(tiny_base, SEED), fail_forward, {2})
    assert distance(whole[:1], halved[:1]) > 0.05


@pytest.mark.parametrize("old", ["trainer", "rollout"])
def test_t19_the_second_update_is_halved_too(old, tiny_base):
    """It has old log-probs from before the first one, which its halves must keep."""
    changes = (
        SEED,
        "optim.lr=1e-3",
        f"algorithm.old_logprob={old}",
        "rollout.batch_invariant=true",
    )
    whole, usual = gradients_of_a_step(tiny_trainer(tiny_base, *changes), never, set())
    (last,) = {int(usual.metrics["packing/micro_batches"])}
    halved, stats = gradients_of_a_step(tiny_trainer(tiny_base, *changes), fail_forward, {last})
    assert distance(whole[:1], halved[:1]) == 0 and distance(whole, halved) < 1e-6
    assert stats.seconds["memory/halved"] > 0


def test_t19_a_second_failure_stops_with_the_sizes(tiny_base):
    trainer = tiny_trainer(tiny_base)
    with pytest.raises(MemoryError) as caught:
        gradients_of_a_step(trainer, fail_forward, {2, 3})
    words = str(caught.value)
    assert "train.micro_batch_tokens" in words and trainer.step == 0
    whole, half = map(int, re.findall(r"up to (\d+)", words))
    assert 100 >= whole > half > 0


def test_t19_the_run_goes_on_and_says_so(tiny_base, tmp_path, monkeypatch, capsys):
    job = make_run(tiny_base, tmp_path / "run", "train.steps=2", "evaluate.every=0")
    fail_forward(job.trainer, monkeypatch, {1})
    monkeypatch.setattr(loop, "draw", lambda folder: None)
    assert loop.run_loop(job)
    assert "step 1: out of memory, done again with micro-batches of half" in capsys.readouterr().out
    halved = [row["timing"]["memory/halved"] for row in read_rows(tmp_path / "run" / METRICS)]
    assert halved[0] > 0 and halved[1] == 0


def test_t19_only_a_failed_allocation_is_one():
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 58)
    assert is_out_of_memory(real.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_another_error_in_an_update_is_not_tried_again(tiny_base, monkeypatch):
    trainer, calls = tiny_trainer(tiny_base), []

    def broken(*parts):
        calls.append(parts)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(step, "policy_loss", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        step.train_step(trainer)
    assert len(calls) == 1


def test_t10_a_skipped_update_is_said_with_its_rollouts(tiny_base, tmp_path, monkeypatch, capsys):
    """And each of its rows in samples.jsonl has the mark."""
    take_step = Optimizer.step

    def spoiled(optimizer):
        if optimizer.updates == 1 and not optimizer.skipped:  # the second update of the first step
            optimizer.parameters[3].grad[0] = torch.inf
        return take_step(optimizer)

    monkeypatch.setattr(Optimizer, "step", spoiled)
    run = tmp_path / "run"
    run_here(tiny_base, run, "train.steps=2", "evaluate.every=0")
    rows = read_rows(run / "samples.jsonl")
    marked = [row for row in rows if row["skipped"]]
    assert len(marked) == 6 and {row["step"] for row in marked} == {1}
    named = " ".join(f"{row['group']}/{row['sample']}" for row in marked)
    said = capsys.readouterr().out
    assert "step 1: update skipped" in said and said.split("samples.jsonl): ")[1].startswith(named)
