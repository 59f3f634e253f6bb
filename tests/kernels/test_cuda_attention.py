"""The attention libraries on CUDA: the calls made to them, and, with a GPU, what they return."""

import sys
import types

import flash_attn_stub
import pytest
import torch
from attention_inputs import LENGTHS, SCALE, naive, packed, paged
from three_way import assert_three_way
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels.cuda_impl import loading
from kernels.cuda_impl import paged_decode_attention as cuda_decode
from kernels.cuda_impl import varlen_attention as cuda_varlen
from kernels.torch_ref import varlen_attention as varlen_ref


@pytest.fixture
def calls(monkeypatch):
    """Has the package's place taken by flash_attn_stub, and returns the calls made to it."""
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", flash_attn_stub)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    loading.flash_attn.cache_clear()
    flash_attn_stub.calls.clear()
    yield flash_attn_stub.calls
    loading.flash_attn.cache_clear()


def test_calls_of_flash_attn(calls):
    q, k, v, cu_seqlens = packed([5, 0, 3], dtype=torch.bfloat16)
    out, lse = cuda_varlen.forward(q, k, v, cu_seqlens, 5, SCALE)
    grads = cuda_varlen.backward(out, q, k, v, out, lse, cu_seqlens, 5, SCALE)
    (_, forward), (_, backward) = calls
    assert forward["softmax_scale"] == SCALE and forward["causal"] and forward["return_attn_probs"]
    for call in (forward, backward):
        assert call["cu_seqlens_q"].equal(cu_seqlens) and call["cu_seqlens_k"].equal(cu_seqlens)
        assert call["max_seqlen_q"] == call["max_seqlen_k"] == 5
        assert call["q"].equal(q) and call["k"].equal(k) and call["v"].equal(v)
        assert call["dropout_p"] == 0
    assert backward["softmax_scale"] == SCALE and backward["causal"] and backward["deterministic"]
    assert (backward["window_size_left"], backward["window_size_right"]) == (-1, -1)
    assert backward["softmax_lse"] is lse
    assert [x.shape for x in grads] == [x.shape for x in (q, k, v)]
    assert all(x.eq(1).all() for x in grads)


def test_pages_of_flash_attn(calls):
    q, k, v, cu_seqlens = packed([5, 3], dtype=torch.bfloat16)
    lengths = torch.tensor([5, 3]).int()

    def decode(page, otherwise=None):
        caches = paged(k, v, cu_seqlens, page, 0.0)
        return cuda_decode.paged_decode_attention(q[:2], *caches, lengths, SCALE, otherwise), caches

    out, (k_cache, v_cache, block_table) = decode(256)
    assert out.shape == (2, 6, 16)
    ((_, call),) = calls
    assert call["q"].shape == (2, 1, 6, 16) and call["causal"] and call["softmax_scale"] == SCALE
    assert call["k_cache"] is k_cache and call["v_cache"] is v_cache
    assert call["block_table"] is block_table and call["cache_seqlens"] is lengths
    assert decode(16, lambda *arguments: arguments[0])[0].equal(q[:2])
    assert len(calls) == 1


def test_calls_of_torch_fit_their_signatures():
    """torch's own kernels under fake tensors: shapes and argument lists, without a GPU."""
    with FakeTensorMode():
        q, k, v = (torch.empty(8, h, 64, dtype=torch.bfloat16, device="cuda") for h in (6, 2, 2))
        cu_seqlens = torch.empty(3, dtype=torch.int32, device="cuda")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
            patch.setattr(cuda_varlen, "flash_attn", lambda: None)
            out, lse = cuda_varlen.forward(q, k, v, cu_seqlens, 5, SCALE)
            grads = cuda_varlen.backward(out, q, k, v, out, lse, cu_seqlens, 5, SCALE)
    assert out.shape == q.shape and lse.shape == (6, 8) and lse.dtype == torch.float32
    assert [x.shape for x in grads] == [x.shape for x in (q, k, v)]


def test_sdpa_by_sequence_serves_the_rest():
    """float32 is not FlashAttention's; on the CPU as well, so it can be compared here."""
    *tensors, cu_seqlens = packed(LENGTHS)
    grad = torch.randn(tensors[0].shape)
    out, lse = cuda_varlen.forward(*tensors, cu_seqlens, 300, SCALE)
    got = (out, *cuda_varlen.backward(grad, *tensors, out, lse, cu_seqlens, 300, SCALE))
    leaves = [x.requires_grad_() for x in tensors]
    want = naive(*leaves, cu_seqlens)
    for a, b in zip(got, (want, *torch.autograd.grad(want, leaves, grad)), strict=True):
        assert (a - b).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_varlen_on_a_gpu(dtype):
    q, k, v, cu_seqlens = packed(LENGTHS, size=64, dtype=dtype)
    grad = torch.randn(q.shape).to(dtype)

    def run(function, dtype, device):
        leaves = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, grad.to(device, dtype))]

    def ours(q, k, v):
        return kernels.varlen_attention(q, k, v, cu_seqlens, max(LENGTHS), scale=SCALE)

    truth = run(lambda *x: naive(*x, cu_seqlens), torch.float64, "cpu")
    plain = run(lambda *x: naive(*x, cu_seqlens), dtype, "cpu")
    for a, b, c in zip(run(ours, dtype, "cuda"), plain, truth, strict=True):
        atol = (2**-8 if dtype == torch.bfloat16 else 1e-5) * float(c.abs().max())
        assert_three_way(a.cpu(), b, c, atol, "varlen")


@pytest.mark.gpu
@pytest.mark.parametrize("page", [16, 256])
def test_decode_on_a_gpu(page):
    q, k, v, cu_seqlens = packed(LENGTHS, size=64, dtype=torch.bfloat16)
    last = cu_seqlens[1:].long() - 1
    truth = naive(q.double(), k.double(), v.double(), cu_seqlens)[last]
    arguments = (q[last], *paged(k, v, cu_seqlens, page, 0.0), cu_seqlens.diff())
    got = kernels.paged_decode_attention(*(x.cuda() for x in arguments), scale=SCALE)
    assert_three_way(got.cpu(), naive(q, k, v, cu_seqlens)[last], truth, 2**-8, "decode")


# Sequences behind a prefix: the first three are prefixes, of which the second has no response.
SHARED = [5, 3, 4, 2, 6, 3], [-1, -1, -1, 0, 0, 2]


def flash_by_hand(q, k, v, bounds, scale):
    """_flash in float32 on the CPU: (out, lse)."""
    out, lse = torch.zeros(q.shape), torch.full((q.shape[1], len(q)), -torch.inf)
    for i in range(len(bounds.queries) - 1):
        rows, seen = (slice(*x[i : i + 2].tolist()) for x in (bounds.queries, bounds.keys))
        scores = torch.einsum("ihd,jhd->hij", q[rows], k[seen].repeat_interleave(3, 1)) * scale
        if bounds.causal:
            scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        lse[:, rows] = scores.logsumexp(-1)
        p = scores.softmax(-1)
        out[rows] = torch.einsum("hij,jhd->ihd", p, v[seen].repeat_interleave(3, 1))
    return out, lse


def flash_backward_by_hand(grad, q, k, v, out, lse, bounds, scale):
    """FlashAttention-2's backward pass of such a call, from the given output and log-sum-exp."""
    dq, dk, dv = (torch.zeros(x.shape) for x in (q, k, v))
    for i in range(len(bounds.queries) - 1):
        rows, seen = (slice(*x[i : i + 2].tolist()) for x in (bounds.queries, bounds.keys))
        keys, values = (x[seen].repeat_interleave(3, 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[rows], keys) * scale
        p = (scores - lse[:, rows, None]).exp()
        p = p.tril() if bounds.causal else p
        delta = (grad[rows] * out[rows]).sum(-1).t()[..., None]
        ds = p * (torch.einsum("ihd,jhd->hij", grad[rows], values) - delta) * scale
        dq[rows] = torch.einsum("hij,jhd->ihd", ds, keys)
        for total, weights, x in ((dk, ds, q), (dv, p, grad)):
            part = torch.einsum("hij,ihd->jhd", weights, x[rows])
            total[seen] = part.unflatten(1, (-1, 3)).sum(2)
    return dq, dk, dv


@pytest.mark.parametrize("by", ["flash", "sdpa"])
def test_two_calls_merge_into_one_softmax(by, monkeypatch):
    *tensors, cu_seqlens = packed(SHARED[0])
    prefix = torch.tensor(SHARED[1]).int()
    if by == "flash":
        monkeypatch.setattr(cuda_varlen, "takes", lambda q: True)
        monkeypatch.setattr(cuda_varlen, "_flash", flash_by_hand)
        monkeypatch.setattr(cuda_varlen, "_flash_backward", flash_backward_by_hand)
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(3))
    bounds = (cu_seqlens, 6, SCALE, prefix)
    out, lse = cuda_varlen.forward(*tensors, *bounds)
    got = (out, *cuda_varlen.backward(grad, *tensors, out, lse, *bounds))
    wanted, wanted_lse = varlen_ref.forward(*tensors, *bounds)
    want = (wanted, *varlen_ref.backward(grad, *tensors, wanted, wanted_lse, *bounds))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_calls_of_flash_attn_with_a_prefix(calls):
    q, k, v, cu_seqlens = packed(SHARED[0], dtype=torch.bfloat16)
    bounds = (cu_seqlens, 6, SCALE, torch.tensor(SHARED[1]).int())
    out, lse = cuda_varlen.forward(q, k, v, *bounds)
    grads = cuda_varlen.backward(out, q, k, v, out, lse, *bounds)
    assert [name for name, _ in calls] == ["forward"] * 2 + ["backward"] * 2
    for (_, own), (_, shared) in (calls[:2], calls[2:]):
        assert own["causal"] and own["q"].equal(q) and own["cu_seqlens_q"].equal(cu_seqlens)
        assert not shared["causal"] and shared["q"].equal(q[12:]) and shared["k"].equal(k[:12])
        assert shared["cu_seqlens_q"].tolist() == [0, 8, 8, 11]
        assert shared["cu_seqlens_k"].tolist() == [0, 5, 8, 12]
        assert (shared["max_seqlen_q"], shared["max_seqlen_k"]) == (8, 5)
    assert [x.unique().tolist() for x in (grads[0][12:], grads[1][:12], grads[2][:12])] == [[2]] * 3
