"""Checks of the row-wise Triton kernels, on any device: run in the interpreter and on a GPU.

Each draws inputs, runs the kernel and plain torch in the same dtype and in float64, and compares by
the three-way rule. The plain forms stand here, whole-row and by autograd, so that nothing of the
kernels' own arithmetic is in them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.torch_ref import linear_logprob as ref
from kernels.triton_impl import logprob_rows, rms_norm, rope, swiglu
from tests.kernels.three_way import assert_three_way, error


def draw(*shape: int, dtype=torch.float32, device="cpu", seed=0, scale=1.0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x.to(device, dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def selective(logits, targets, temperature, vocab):
    """(logprob, entropy) of whole rows; p log p is 0 where p is 0."""
    log_p = (logits[:, :vocab].to(wide(logits.dtype)) / temperature).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * torch.where(p > 0, log_p, 0.0)).sum(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), entropy


def norm(x, residual, weight, eps):
    """(y, total) with the rounding of transformers before the weight."""
    total = x if residual is None else x + residual
    scale = torch.rsqrt(total.to(wide(x.dtype)).pow(2).mean(-1, keepdim=True) + eps)
    return weight * (total.to(wide(x.dtype)) * scale).to(x.dtype), total


def rotate(x, cos, sin):
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def gradients(function, inputs, grads):
    """(outputs, gradients by the inputs) of plain autograd; None among grads is no gradient."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    pairs = [(y, g.to(y.dtype)) for y, g in zip(outputs, grads, strict=True) if g is not None]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return [y.detach() for y in outputs], [x.grad for x in inputs]


def three_way(got, plain, truth, atol, names):
    """The three-way rule for each output; atol is at least two float32 steps of its largest."""
    for name, a, b, c in zip(names.split(), got, plain, truth, strict=True):
        largest = float(c.abs().max()) if c.numel() else 0.0
        assert_three_way(a, b, c, max(atol, 2 * torch.finfo(torch.float32).eps * largest), name)


def check_logits(logits, targets, temperature, grads=None, vocab=None):
    """Forward and backward of logprob_from_logits, and of the in-place form where it applies."""
    columns = logits.shape[1]
    vocab = vocab or columns
    if grads is None:
        grads = draw(2, len(targets), seed=1, device=logits.device).unbind()

    def plain(x):
        return gradients(lambda x: selective(x, targets, temperature, vocab), (x,), grads)

    (same, (d_same,)), (truth, (d_truth,)) = plain(logits), plain(logits.double())
    logprob, entropy, stats = logprob_rows.logprob_from_logits(logits, targets, temperature, vocab)
    shape = (logits, targets, stats, temperature, vocab)
    d_logits = logprob_rows.logprob_from_logits_backward(*grads, *shape)
    assert d_logits.dtype == logits.dtype and d_logits[:, vocab:].eq(0).all()
    got, names = (logprob, entropy, d_logits), "logprob entropy d_logits"
    three_way(got, (*same, d_same), (*truth, d_truth), 2e-6, names)
    if vocab == columns:
        work = logits.clone()
        found, stats = logprob_rows.logprob_rows(work, targets, temperature)
        logprob_rows.logprob_rows_backward(work, targets, stats, *grads, temperature)
        assert found.equal(logprob) and work.equal(d_logits)
        # Statistics mean the same to every backend, and a target of another tile has no δ.
        _, theirs = ref.logprob_rows(logits, targets, temperature)
        assert stats[:, 0].equal(theirs[:, 0]) and error(stats, theirs) < 2e-5
        work, want = logits.clone(), logits.clone()
        for run, x in ((logprob_rows, work), (ref, want)):
            run.logprob_rows_backward(x, targets + columns, theirs, *grads, temperature)
        torch.testing.assert_close(work, want, atol=2e-6, rtol=2.0**-7)


def check_rms_norm(x, residual, weight, grads, eps=1e-6):
    """grads are those of y and total; x and residual may be strided."""
    inputs = [x, weight] if residual is None else [x, weight, residual]

    def function(x, weight, residual=None):
        return norm(x, residual, weight, eps)

    same, d_same = gradients(function, inputs, grads)
    truth, d_truth = gradients(function, [t.double() for t in inputs], grads)
    y, total, rstd = rms_norm.forward(x, weight, eps, residual)
    assert total.shape[0] == (0 if residual is None else x.shape[0])
    three_way([y], same[:1], truth[:1], 1e-6, "y")
    if residual is not None:
        assert total.equal(x + residual)
    used = x if residual is None else total
    d_x, d_weight = rms_norm.backward(grads[0], grads[1], used, weight, rstd)
    assert d_x.dtype == d_weight.dtype == x.dtype
    three_way((d_x, d_weight), d_same[:2], d_truth[:2], 1e-6, "d_x d_weight")
    again = rms_norm.backward(grads[0], grads[1], used, weight, rstd)
    assert again[0].equal(d_x) and again[1].equal(d_weight)


def check_rope(q, k, cos, sin):
    """Against plain torch, and there and back again."""
    got = rope.rope(q, k, cos, sin)
    same = [rotate(x, cos, sin) for x in (q, k)]
    truth = [rotate(x.double(), cos.to(x.dtype), sin.to(x.dtype)) for x in (q, k)]
    assert got[0].dtype == q.dtype and got[0].is_contiguous() and got[1].is_contiguous()
    three_way(got, same, truth, 1e-6, "q k")
    leaves = [x.detach().double().requires_grad_() for x in (q, k)]
    grads = [draw(*x.shape, seed=7 + i, device=x.device) for i, x in enumerate((q, k))]
    grads = [g.to(q.dtype) for g in grads]
    torch.autograd.backward(
        [rotate(x, cos.to(q.dtype), sin.to(q.dtype)) for x in leaves], [g.double() for g in grads]
    )
    got = rope.rope(*grads, cos, -sin)
    same = [rotate(g, cos, -sin) for g in grads]
    three_way(got, same, [x.grad for x in leaves], 1e-6, "d_q d_k")


def check_swiglu(gate, up, grad):
    def function(gate, up):
        return (F.silu(gate) * up,)

    same, d_same = gradients(function, (gate, up), (grad,))
    truth, d_truth = gradients(function, (gate.double(), up.double()), (grad,))
    got = (swiglu.forward(gate, up), *swiglu.backward(grad, gate, up))
    assert all(x.dtype == gate.dtype for x in got)
    three_way(got, (*same, *d_same), (*truth, *d_truth), 1e-6, "out d_gate d_up")


def adamw_inputs(sizes, device="cpu"):
    """Weights of these sizes, their halves, and moments as after some steps, counted: 3, 4, ..."""
    weights = [draw(n, device=device, seed=i, scale=0.05) for i, n in enumerate(sizes)]
    moments = [draw(n, device=device, seed=50 + i, scale=0.1) for i, n in enumerate(sizes)]
    squares = [draw(n, device=device, seed=90 + i, scale=0.1).square() for i, n in enumerate(sizes)]
    steps = [torch.tensor(3.0 + i, device=device) for i in range(len(sizes))]
    return weights, moments, squares, steps


def check_adamw_split(sizes, device="cpu", beta1=0.9, lr=1e-3, weight_decay=0.1):
    """Two steps of adamw_split_ against torch's AdamW, fused in float32, and plain in float64."""
    weights, moments, squares, steps = adamw_inputs(sizes, device)
    settings = {"lr": lr, "betas": (beta1, 0.999), "eps": 1e-8, "weight_decay": weight_decay}

    def theirs(dtype, fused):
        leaves = [torch.nn.Parameter(w.to(dtype, copy=True)) for w in weights]
        adamw = torch.optim.AdamW(leaves, **settings, fused=fused)
        for leaf, m, v, t in zip(leaves, moments, squares, steps, strict=True):
            state = {"exp_avg": m.to(dtype, copy=True), "exp_avg_sq": v.to(dtype, copy=True)}
            adamw.state[leaf] = state | {"step": t.clone()}
        return leaves, adamw

    leaves, adamw = theirs(torch.float32, True)
    exact, exactly = theirs(torch.float64, False)
    halves = [kernels.split_bits(w) for w in weights]
    high, low = [h for h, _ in halves], [rest for _, rest in halves]
    skip = torch.tensor(False, device=device)
    for number in range(2):
        grads = [
            draw(n, device=device, seed=10 * number + i, scale=10.0 ** (2 - i % 5))
            for i, n in enumerate(sizes)
        ]
        for group, optimizer in ((leaves, adamw), (exact, exactly)):
            for leaf, grad in zip(group, grads, strict=True):
                leaf.grad = grad.to(leaf.dtype)
            optimizer.step()
        steps = [t + 1 for t in steps]
        kernels.adamw_split_(
            *(high, low, grads, moments, squares, steps),
            **{"lr": lr, "beta1": beta1, "beta2": 0.999, "eps": 1e-8},
            weight_decay=weight_decay,
            skip=skip,
        )
    got = zip(map(kernels.join_bits, high, low), moments, squares, strict=True)
    for ours, leaf, truth in zip(got, leaves, exact, strict=True):
        plain, wide = (
            (x.detach(), o.state[x]["exp_avg"], o.state[x]["exp_avg_sq"])
            for x, o in ((leaf, adamw), (truth, exactly))
        )
        three_way(ours, plain, wide, 0.0, "w m v")


def check_unmoved(device="cpu"):
    """With no rate and no gradient every number stays: upper halves of all kinds, around a tie."""
    upper = torch.arange(-(2**15), 2**15, 17, dtype=torch.int32)[:, None] << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    x = (upper | lower).flatten().view(torch.float32)
    x = x[~x.isnan()].to(device)
    high, low = kernels.split_bits(x)
    before, zero = high.clone(), torch.zeros_like(x)
    kernels.adamw_split_(
        *([high], [low], [zero], [zero.clone()], [zero.clone()], [torch.ones((), device=device)]),
        **{"lr": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
        skip=torch.tensor(False, device=device),
    )
    assert kernels.join_bits(high, low).view(torch.int32).equal(x.view(torch.int32))
    assert high.view(torch.int16).equal(before.view(torch.int16))
