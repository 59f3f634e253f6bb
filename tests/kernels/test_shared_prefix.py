"""varlen_attention with `prefix`: sequences behind one copy of the keys that they share."""

import pytest
import torch
from attention_inputs import SCALE, naive, packed
from three_way import assert_three_way

import kernels
from kernels.ops.varlen_attention import _backward_op, _forward_op

# Prefixes below, at and above a register and a block of keys, one that nothing follows and an empty
# one; responses that end before, in and behind the block their prefix ends in; groups of one.
LENGTHS = [5, 64, 0, 17, 70, 1, 9, 60, 129, 0, 65, 33, 3, 40]
PREFIX = [-1, -1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 4, 4]


def prefixed(lengths=LENGTHS, prefix=PREFIX, **sizes):
    """q, k, v, cu_seqlens, prefix."""
    return *packed(lengths, **sizes), torch.tensor(prefix, dtype=torch.int32)


def attend(q, k, v, cu_seqlens, prefix):
    longest = int(cu_seqlens.diff().max())
    return kernels.varlen_attention(q, k, v, cu_seqlens, longest, scale=SCALE, prefix=prefix)


def copied(q, k, v, cu_seqlens, prefix, attention=None):
    """The same with a copy of its prefix before each sequence, by `naive` or another attention."""
    bounds, sequences, kept, size = cu_seqlens.tolist(), [], [], 0
    for b, before in enumerate(prefix.tolist()):
        shared = [] if before < 0 else range(bounds[before], bounds[before + 1])
        own = range(bounds[b], bounds[b + 1])
        sequences.append([*shared, *own])
        kept += range(size + len(shared), size + len(sequences[-1]))
        size += len(sequences[-1])
    index = torch.tensor([t for s in sequences for t in s])
    lengths = torch.tensor([0, *map(len, sequences)]).cumsum(0).int()
    return (attention or naive)(q[index], k[index], v[index], lengths)[kept]


def results(function, tensors, cu_seqlens, prefix, seed=1):
    """out, dq, dk, dv."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves, cu_seqlens, prefix)
    grad = torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-9)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 16), (4, 1, 64), (3, 3, 24)])
def test_against_a_copy_for_each(backend, heads, kv_heads, size, dtype, atol):
    *tensors, cu_seqlens, prefix = prefixed(heads=heads, kv_heads=kv_heads, size=size, dtype=dtype)
    truth = results(copied, [x.double() for x in tensors], cu_seqlens, prefix)
    plain = results(copied, tensors, cu_seqlens, prefix)
    got = results(attend, tensors, cu_seqlens, prefix)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), got, plain, truth, strict=True):
        assert a.dtype == dtype
        assert_three_way(a, b, c, atol * max(1.0, float(c.abs().max())), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_of_the_output_tells(cpp, dtype):
    *tensors, cu_seqlens, prefix = prefixed(dtype=dtype)

    def ours(q, k, v, cu_seqlens):
        return kernels.varlen_attention(
            q, k, v, cu_seqlens, int(cu_seqlens.diff().max()), scale=SCALE
        )

    expected = copied(*tensors, cu_seqlens, prefix, attention=ours)
    assert attend(*tensors, cu_seqlens, prefix).equal(expected)


def test_without_a_prefix_it_is_the_plain_op(backend):
    *tensors, cu_seqlens, prefix = prefixed([5, 70, 3], [-1, -1, -1])
    found = [results(attend, tensors, cu_seqlens, p) for p in (prefix, None)]
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_family_cannot_change_another(backend, dtype):
    """Nor a response its prefix or a sibling: outputs only, as the prefix's gradient is theirs."""
    *tensors, cu_seqlens, prefix = prefixed(dtype=dtype)
    base = results(attend, tensors, cu_seqlens, prefix)
    for changed in (1, 8):  # a prefix, one of its responses
        rows = slice(int(cu_seqlens[changed]), int(cu_seqlens[changed + 1]))
        other = [x.clone() for x in tensors]
        for x in other:
            x[rows] = torch.nan
        got = results(attend, other, cu_seqlens, prefix)
        family = [b for b in range(len(prefix)) if b == 1 or prefix[b] == 1]
        inside = torch.cat([torch.arange(*cu_seqlens[b : b + 2].tolist()) for b in family])
        others = torch.ones(len(base[0]), dtype=torch.bool)
        others[inside] = False
        assert all(a[others].equal(b[others]) for a, b in zip(got, base, strict=True))
        if changed == 8:
            others[:] = True
            others[rows] = False
            assert got[0][others].equal(base[0][others])


def test_cpp_does_not_depend_on_threads(cpp):
    *tensors, cu_seqlens, prefix = prefixed()
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(results(attend, tensors, cu_seqlens, prefix))
    torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_gradcheck():
    *leaves, cu_seqlens, prefix = prefixed(
        [2, 1, 3, 2, 1], [-1, -1, 0, 0, 1], heads=2, kv_heads=1, size=2, dtype=torch.float64
    )
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, cu_seqlens, prefix), leaves)


def test_registration(backend):
    *tensors, cu_seqlens, prefix = prefixed([3, 2, 4], [-1, 0, 0])
    arguments = (*(x.requires_grad_() for x in tensors), cu_seqlens, 4, SCALE, prefix)
    torch.library.opcheck(_forward_op, arguments)
    with torch.no_grad():
        out, lse = _forward_op(*arguments)
        saved = (*(x.detach() for x in tensors), out, lse, cu_seqlens, 4, SCALE, prefix)
        torch.library.opcheck(_backward_op, (out, *saved))


@pytest.mark.parametrize(
    "prefix",
    [
        [-1, 0, -1],  # falls
        [-1, 1, 1],  # its own
        [-1, 0, 1],  # a prefix that has one itself
        [0, 0, 0],  # nobody is without
        [-2, 0, 0],
        [-1, 0, 3],
    ],
    ids=str,
)
def test_what_cannot_be_a_prefix_is_refused(prefix):
    with pytest.raises(ValueError, match="prefix must not fall and hold -1"):
        attend(*prefixed([3, 2, 4], prefix))


def test_other_refusals():
    *tensors, cu_seqlens, prefix = prefixed([3, 2, 4], [-1, 0, 0])
    with pytest.raises(ValueError, match=r"prefix has shape \[2\], expected \[3\]"):
        attend(*tensors, cu_seqlens, prefix[:2])
    with pytest.raises(ValueError, match=r"prefix is torch\.int64"):
        attend(*tensors, cu_seqlens, prefix.long())
