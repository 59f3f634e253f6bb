"""The public ops on the Triton backend, which dispatch takes in the interpreter."""

import pytest
import torch

import kernels
from kernels.ops import count_lengths, lcpo_advantage, policy_loss, sample_tokens
from tests.kernels.triton_policy import loss_inputs
from tests.kernels.triton_rows import draw


def integers(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_triton_is_what_runs():
    chosen = kernels.active_backends()
    assert chosen["policy_loss"] == chosen["linear_logprob_backward"] == "triton"
    assert kernels.active_backends(dtype=torch.float64)["linear_logprob"] == "torch"


# No output may alias another, and register_fake must tell the truth, strides included.
@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (count_lengths._op, (torch.arange(9), integers(0, 4, 9), 3, [5, 6])),
        (
            lcpo_advantage._op,
            (
                torch.tensor([1.0, 0.0, 1.0]),
                *(integers(1, 1, 2) for _ in range(3)),
                *(integers(0, 1, 0), 2, "linear", 0.1, 0.1, 0.5, "grpo", 1e-6),
            ),
        ),
        (policy_loss._op, (*loss_inputs(17, 5), 0.2, 0.2, 0.1, "k3", 0.1)),
        (
            sample_tokens._op,
            (draw(3, 127), 0.6, 5, 0.9, torch.arange(3), torch.arange(3), 127),
        ),
    ],
)
def test_opcheck(op, arguments):
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op, arguments, test_utils=tests)


def test_linear_logprob():
    """Chunks, padded vocabulary rows and both gradients, against the torch backend."""
    found = []
    for backend in ("triton", "torch"):
        hidden, weight = draw(7, 16).requires_grad_(), draw(140, 16, seed=1).requires_grad_()
        with kernels.override(f"linear_logprob={backend},linear_logprob_backward={backend}"):
            outputs = kernels.linear_logprob(
                hidden,
                weight,
                torch.arange(7) * 18,
                temperature=0.6,
                vocab_size=129,
                chunk_tokens=3,
            )
            torch.autograd.backward(outputs, draw(2, 7, seed=2).unbind())
        found.append([*outputs, hidden.grad, weight.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_policy_loss_has_a_gradient():
    found = []
    for backend in ("triton", "torch"):
        inputs = loss_inputs(17, 5)
        leaves = [inputs[0].clone().requires_grad_(), inputs[3].clone().requires_grad_()]
        inputs = (leaves[0], *inputs[1:3], leaves[1], *inputs[4:])
        with kernels.override(f"policy_loss={backend}"):
            loss, stats = kernels.policy_loss(
                *inputs, clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_grad="k3", entropy_coef=0.1
            )
        (loss * 0.7).backward()
        found.append([loss, *stats, *(x.grad for x in leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_linear_policy_loss():
    found = []
    old, ref, _, advantage, weight, seq_ids = loss_inputs(17, 5)[1:]
    for backend in ("triton", "torch"):
        hidden, head = draw(17, 16).requires_grad_(), draw(129, 16, seed=1).requires_grad_()
        with kernels.override(f"linear_policy_loss={backend}"):
            loss, stats, logprob = kernels.linear_policy_loss(
                *(hidden, head, torch.arange(17) * 7, old, ref, advantage, weight, seq_ids),
                temperature=0.6,
                clip_low=0.2,
                clip_high=0.2,
                kl_coef=0.1,
                kl_grad="k3",
                entropy_coef=0.1,
                chunk_tokens=6,
            )
        loss.backward()
        found.append([loss, *stats, logprob, hidden.grad, head.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
