"""varlen_attention and decode_attention against a loop over sequences."""

import pytest
import torch
from kernels.torch_ref.attention import _similar, varlen_attention_loop
from three_way import error

import kernels

SCALE = 0.31
# One token; one sequence; equal; empty ones in between; lengths far apart, which need several
# blocks; around a tile of 128; many short ones, as in a tiny rollout.
LENGTHS = {
    "one token": [1],
    "one sequence": [33],
    "equal": [16] * 4,
    "with empty ones": [0, 5, 0, 0, 2, 0],
    "far apart": [1, 200, 3, 90, 60, 2, 199],
    "around a tile": [127, 128, 129, 17],
    "many": list(range(1, 40)),
}


def packed(lengths, heads=6, kv_heads=2, size=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    q, k, v = (
        torch.randn(total, h, size, generator=generator).to(dtype)
        for h in (heads, kv_heads, kv_heads)
    )
    return q, k, v, torch.tensor([0, *lengths]).cumsum(0).int()


def attend(q, k, v, cu_seqlens):
    longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    return kernels.varlen_attention(q, k, v, cu_seqlens, longest, scale=SCALE)


def with_gradients(function, q, k, v, cu_seqlens, grad):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves, cu_seqlens)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def loop(q, k, v, cu_seqlens):
    return varlen_attention_loop(q, k, v, cu_seqlens, SCALE)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
def test_equals_a_loop(lengths, heads):
    tensors = packed(lengths, *heads)
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    got = with_gradients(attend, *tensors, grad)
    doubled = [x.double() for x in tensors[:3]]
    want = with_gradients(loop, *doubled, tensors[3], grad.double())
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert a.shape == b.shape and error(a, b) < 1e-5, name


def test_no_tokens():
    for lengths in ([], [0, 0]):
        q, k, v, cu_seqlens = packed(lengths)
        assert attend(q, k, v, cu_seqlens).shape == q.shape == (0, 6, 8)


def test_bfloat16():
    tensors = packed(LENGTHS["far apart"], dtype=torch.bfloat16)
    got = attend(*tensors)
    assert got.dtype == torch.bfloat16
    truth = loop(*(x.double() for x in tensors[:3]), tensors[3])
    plain = loop(*tensors)
    assert error(got, truth) <= 2 * error(plain, truth) + 1e-3


def test_one_sequence_cannot_change_another():
    """T13, with a NaN, and in the gradients too: not a bit of the others moves."""
    lengths = LENGTHS["far apart"]
    q, k, v, cu_seqlens = packed(lengths)
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    base = with_gradients(attend, q, k, v, cu_seqlens, grad)
    start, stop = cu_seqlens[1].item(), cu_seqlens[2].item()
    others = torch.ones(len(q), dtype=torch.bool)
    others[start:stop] = False
    for poison in (7.0, torch.nan):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[start:stop] += poison
        got = with_gradients(attend, *changed, cu_seqlens, grad)
        for a, b in zip(got, base, strict=True):
            assert a[others].equal(b[others])
            assert not a[~others].equal(b[~others])


def test_the_past_does_not_see_the_future():
    q, k, v, cu_seqlens = packed([33, 5])
    base = attend(q, k, v, cu_seqlens)
    k[20:33], v[20:33] = 1e3, -1e3
    got = attend(q, k, v, cu_seqlens)
    assert got[:20].equal(base[:20]) and got[33:].equal(base[33:])


def test_gradcheck():
    *leaves, cu_seqlens = packed([3, 0, 1, 4], 2, 1, 2, torch.float64)
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, cu_seqlens), leaves)


def test_a_forward_in_inference_mode_leaves_training_usable():
    tensors = packed([7, 19, 3])
    with torch.inference_mode():
        attend(*tensors)
    with_gradients(attend, *tensors, torch.ones_like(tensors[0]))


def test_blocks_are_few_and_little_padded():
    bounds = torch.tensor([0, *range(1, 4097, 13)]).cumsum(0).tolist()
    blocks = _similar(tuple(bounds))
    lengths = [[bounds[i + 1] - bounds[i] for i in members] for members in blocks]
    assert sum(map(len, blocks)) == len(bounds) - 1
    assert len(blocks) <= 16
    assert sum(len(n) * n[0] for n in lengths) <= 1.3 * bounds[-1]


def test_varlen_refusals():
    q, k, v, cu_seqlens = packed([3, 4])
    with pytest.raises(ValueError, match="a sequence of 4 tokens exceeds max_seqlen=3"):
        kernels.varlen_attention(q, k, v, cu_seqlens, 3, scale=SCALE)
    with pytest.raises(ValueError, match="must rise from 0 to 7"):
        kernels.varlen_attention(q, k, v, cu_seqlens[:-1], 4, scale=SCALE)
    with pytest.raises(ValueError, match="6 query heads cannot share 4"):
        wrong = torch.zeros(7, 4, 8)
        kernels.varlen_attention(q, wrong, wrong, cu_seqlens, 4, scale=SCALE)
    with pytest.raises(ValueError, match=r"v has shape \[6, 2, 8\]"):
        kernels.varlen_attention(q, k, v[:-1], cu_seqlens, 4, scale=SCALE)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
def test_decode_equals_the_last_row_of_a_prefill(heads, dtype):
    lengths = [1, 20, 7, 2, 33]
    room = 40  # longer than the longest: what lies beyond must not matter
    q, k, v, cu_seqlens = packed(lengths, *heads)
    last = cu_seqlens[1:].long() - 1
    want = loop(q.double(), k.double(), v.double(), cu_seqlens)[last]
    cache_k, cache_v = torch.randn(2, len(lengths), room, heads[1], 8).unbind()
    for i, n in enumerate(lengths):
        rows = slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1]))
        cache_k[i, :n], cache_v[i, :n] = k[rows], v[rows]
    count = torch.tensor(lengths, dtype=dtype)
    got = kernels.decode_attention(q[last], cache_k, cache_v, count, scale=SCALE)
    assert error(got, want) < 1e-5
    for x in (cache_k, cache_v):
        x[0, 1:] = 1e4
    again = kernels.decode_attention(q[last], cache_k, cache_v, count, scale=SCALE)
    assert again.equal(got)


def test_decode_refusals():
    q, cache = torch.zeros(2, 4, 8), torch.zeros(2, 5, 2, 8)
    count = torch.tensor([1, 5])
    with pytest.raises(ValueError, match=r"lengths is torch\.float32"):
        kernels.decode_attention(q, cache, cache, count.float(), scale=SCALE)
    with pytest.raises(ValueError, match=r"lengths has shape \[1\]"):
        kernels.decode_attention(q, cache, cache, count[:1], scale=SCALE)
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        kernels.decode_attention(q[:, :3], cache, cache, count, scale=SCALE)
