"""Activations made again: not kept, made once for all their users, the gradient to the bit."""

from __future__ import annotations

import weakref

import torch

from trainer.model.again import made_again


def test_two_users_share_one_and_none_is_kept():
    x = torch.randn(5, 3, requires_grad=True)
    first, second = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    made = []

    def make() -> torch.Tensor:
        made.append(1)
        return x.detach().exp()

    activation = x.exp().clone()  # exp keeps its own result, this copy nobody
    gone = weakref.ref(activation.untyped_storage())
    with made_again(activation, make):
        out = (activation @ first.t()) * (activation @ second.t()).sigmoid()
    del activation
    assert gone() is None and not made

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(out.sum(), (x, first, second), retain_graph=True))

    once, twice = gradients(), gradients()
    assert len(made) == 2  # a backward pass
    plain = x.exp()
    want = (plain @ first.t()) * (plain @ second.t()).sigmoid()
    for known, *found in zip(
        torch.autograd.grad(want.sum(), (x, first, second)), once, twice, strict=True
    ):
        assert all(torch.equal(known, f) for f in found)


def test_what_needs_no_gradient_is_left_alone():
    with made_again(torch.ones(3), lambda: 1 / 0):
        out = torch.ones(3, requires_grad=True) * 2
    out.sum().backward()
