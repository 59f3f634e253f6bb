"""The optimizer of masters that lie split: the steps of whole ones, and nothing forgotten."""

from __future__ import annotations

import math

import pytest
import torch
from test_optim import make_settings

from kernels import join_bits, split_bits
from tests.helpers import tiny_decoder
from trainer.checkpoint import load_optimizer_tensors, optimizer_tensors
from trainer.model import Decoder, working_copy
from trainer.optim import Optimizer

SETTINGS = make_settings(lr=1e-3, weight_decay=0.1, grad_clip=1.0, warmup_steps=3)


def split_optimizer() -> Optimizer:
    model = tiny_decoder()
    return Optimizer(model, SETTINGS, working_copy(model, torch.bfloat16))


def draw_gradients(model: Decoder, seed: int, bad: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    parameter.grad.view(-1)[0] *= bad


def state_of(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Copies of all that a step changes."""
    moments, steps = optimizer_tensors(optimizer.adamw, dict(optimizer.model.named_parameters()))
    counts = {name: torch.tensor(n) for name, n in steps.items()}
    weights = {f"{n}.w": p for n, p in optimizer.masters().named_parameters()}
    found = weights | moments | counts
    if optimizer.working is not None:
        found |= {f"{n}.copy": p for n, p in optimizer.working.named_parameters()}
    return {name: x.detach().clone() for name, x in found.items()}


def test_steps_are_those_of_whole_masters():
    ours, theirs = split_optimizer(), Optimizer(tiny_decoder(), SETTINGS)
    for seed in range(5):
        for optimizer in (ours, theirs):
            draw_gradients(optimizer.model, seed, math.nan if seed == 2 else 1.0)
            optimizer.step()
    assert (ours.updates, ours.skipped, ours.lr) == (theirs.updates, theirs.skipped, theirs.lr)
    got, want = state_of(ours), state_of(theirs)
    for name, x in want.items():  # sums in another order where sizes are no multiple of 16
        torch.testing.assert_close(got[name], x, rtol=1e-5, atol=1e-8, msg=name)
    for name in ours.names:
        assert got[f"{name}.copy"].equal(split_bits(got[f"{name}.w"])[0])


def test_the_masters_memory_is_given_back_and_who_reads_it_sees():
    optimizer = split_optimizer()
    for parameter in optimizer.model.parameters():
        assert parameter.untyped_storage().nbytes() == 4 and parameter.isnan().all()
    start = {name: p.detach() for name, p in tiny_decoder().named_parameters()}
    for name, p in optimizer.masters().named_parameters():
        assert p.dtype == torch.float32 and p.equal(start[name])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_leaves_all_as_it_was(bad):
    optimizer = split_optimizer()
    draw_gradients(optimizer.model, 0)
    optimizer.step()
    before = state_of(optimizer)
    draw_gradients(optimizer.model, 1, bad)
    optimizer.step()
    after = state_of(optimizer)
    assert before.keys() == after.keys() and all(after[k].equal(x) for k, x in before.items())
    assert (optimizer.updates, optimizer.skipped) == (1, 1)


def test_state_of_whole_masters_is_taken_over():
    """A checkpoint has the same tensors whether masters were split or not."""
    whole, ours = Optimizer(tiny_decoder(), SETTINGS), split_optimizer()
    draw_gradients(whole.model, 0)
    whole.step()
    tensors, steps = optimizer_tensors(whole.adamw, dict(whole.model.named_parameters()))
    parameters = dict(ours.model.named_parameters())
    ours.fill({name: p.detach() for name, p in whole.model.named_parameters()})
    load_optimizer_tensors(
        ours.adamw, parameters, {k: x.clone() for k, x in tensors.items()}, steps
    )
    found, want = state_of(ours), state_of(whole)
    assert all(found[name].equal(x) for name, x in want.items())


def test_what_a_step_without_gradients_does():
    optimizer = split_optimizer()
    before = state_of(optimizer)
    optimizer.step()
    after = state_of(optimizer)
    assert before.keys() == after.keys() and all(after[k].equal(x) for k, x in before.items())


def test_halves_are_what_the_copy_and_the_rest_say():
    optimizer = split_optimizer()
    draw_gradients(optimizer.model, 0)
    optimizer.step()
    weights, copies = optimizer.adamw.joined(), dict(optimizer.working.named_parameters())
    for name, low in optimizer.adamw.low.items():
        assert join_bits(copies[name].detach(), low).equal(weights[name])
