"""varlen_attention, forward and backward, against autograd in float64."""

import pytest
import torch
from attention_inputs import LENGTHS, SCALE, naive, packed
from three_way import assert_three_way

import kernels
from kernels.cpp_impl import varlen_attention as cpp_attention
from kernels.ops.varlen_attention import _backward_op, _forward_op

NAMES = ("out", "dq", "dk", "dv")


def attend(q, k, v, cu_seqlens, scale=SCALE):
    longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    return kernels.varlen_attention(q, k, v, cu_seqlens, longest, scale=scale)


def upstream(q, seed=1):
    """Random, not ones: a kernel that used one row's gradient for all would pass with ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(q.shape, generator=generator).bfloat16().to(q.dtype)


def results(function, tensors, cu_seqlens, grad, scale=SCALE):
    """out, dq, dk, dv."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves, cu_seqlens, scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def compare(lengths, atol, dtype=torch.float32, scale=SCALE, gain=1.0, **sizes):
    *tensors, cu_seqlens = packed(lengths, dtype=dtype, **sizes)
    tensors[0] = tensors[0] * gain
    grad = upstream(tensors[0])
    truth = results(naive, [x.double() for x in tensors], cu_seqlens, grad, scale)
    plain = results(naive, tensors, cu_seqlens, grad, scale)
    got = results(attend, tensors, cu_seqlens, grad, scale)
    for name, a, b, c in zip(NAMES, got, plain, truth, strict=True):
        assert a.dtype == dtype
        largest = max(1.0, float(c.abs().max())) if c.numel() else 1.0
        assert_three_way(a, b, c, atol * largest, name)


# All sizes in one batch, each alone (other tiles), and with empty ones in all places.
@pytest.mark.parametrize("lengths", [LENGTHS, *([n] for n in LENGTHS), [0, 5, 0, 0, 2, 0]], ids=str)
def test_lengths(backend, lengths):
    compare(lengths, 1e-6)


# One, three and four query heads a key head (the last is a tile that no sequence fills evenly); a
# group of its own; a group larger than a tile of rows. Sizes of 24 and 80 fill no power of two.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(2, 2, 32), (6, 2, 64), (4, 1, 128), (3, 3, 24), (8, 2, 80), (30, 1, 8), (1, 1, 1)],
)
def test_heads_and_sizes(backend, heads, kv_heads, size):
    sizes = {"heads": heads, "kv_heads": kv_heads, "size": size}
    compare([1, 17, 65, 130], 1e-6, scale=size**-0.5, **sizes)


# SmolLM2's heads, those of a narrow and of a wide model, an odd size (half a pair of bfloat16) and
# one that fills no register. Lengths: tiles of keys and of rows filled, over and short by one.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(9, 3, 64), (4, 2, 32), (12, 2, 128), (3, 1, 5), (6, 2, 24)]
)
def test_bfloat16(backend, heads, kv_heads, size):
    # atol: half a step of the output's format, as plain torch has no error where that is exact
    sizes = {"heads": heads, "kv_heads": kv_heads, "size": size}
    lengths = [1, 2, 17, 47, 48, 49, 63, 65, 130, 257]
    compare(lengths, 2**-9, torch.bfloat16, scale=size**-0.5, **sizes)


# The scale is not folded into bfloat16 queries, but its sign is.
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_bfloat16_scales(backend, scale):
    compare([1, 17, 65, 130], 2**-9, torch.bfloat16, scale=scale)


def test_bfloat16_beside_torch_flash_attention(cpp):
    """Long enough for many tiles: sums over tokens must not lose more than torch's own do."""
    *tensors, cu_seqlens = packed([1500], size=64, dtype=torch.bfloat16)
    grad = upstream(tensors[0])

    def sdpa(q, k, v, cu_seqlens, scale):
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        options = {"is_causal": True, "enable_gqa": True, "scale": scale}
        return torch.nn.functional.scaled_dot_product_attention(*rows, **options)[0].transpose(0, 1)

    truth = results(sdpa, [x.double() for x in tensors], cu_seqlens, grad)
    plain = results(sdpa, tensors, cu_seqlens, grad)
    got = results(attend, tensors, cu_seqlens, grad)
    for name, a, b, c in zip(NAMES, got, plain, truth, strict=True):
        assert (a - c).norm() <= 1.2 * (b - c).norm(), name
        assert_three_way(a, b, c, 0.0, name)


# Scores around 1e4 and 1e-4: a softmax without its maximum would overflow, and one that started
# the maximum at 0 underflow. Float32 has steps of 1e-3 at 1e4.
@pytest.mark.parametrize(("gain", "atol"), [(1e4, 1e-3), (1e-4, 1e-6)])
def test_t16_extreme_scores(backend, gain, atol):
    compare([1, 17, 65, 130], atol, gain=gain)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_tokens(backend, lengths):
    *tensors, cu_seqlens = packed(lengths)
    found = results(attend, tensors, cu_seqlens, tensors[0])
    assert [x.shape[0] for x in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [7.0, torch.nan, torch.inf])
def test_one_sequence_cannot_change_another(backend, poison, dtype):
    """T13, in the gradients too: not a bit of the others moves."""
    *tensors, cu_seqlens = packed([33, 129, 1, 70], dtype=dtype)
    grad = upstream(tensors[0])
    base = results(attend, tensors, cu_seqlens, grad)
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[33:162] += poison
    others = torch.ones(len(grad), dtype=torch.bool)
    others[33:162] = False
    for a, b in zip(results(attend, changed, cu_seqlens, grad), base, strict=True):
        assert a[others].equal(b[others])
        assert not a[~others].equal(b[~others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_has_the_same_bits_alone(backend, dtype):
    *tensors, cu_seqlens = packed([33, 129, 1, 70], dtype=dtype)
    grad = upstream(tensors[0])
    together = results(attend, tensors, cu_seqlens, grad)
    rows = slice(33, 162)
    alone = results(attend, [x[rows] for x in tensors], torch.tensor([0, 129]).int(), grad[rows])
    for a, b in zip(alone, together, strict=True):
        assert a.equal(b[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_past_does_not_see_the_future(backend, dtype):
    q, k, v, cu_seqlens = packed([133, 5], dtype=dtype)
    base = attend(q, k, v, cu_seqlens)
    k[70:133], v[70:133] = 1e3, -1e3
    got = attend(q, k, v, cu_seqlens)
    assert got[:70].equal(base[:70]) and got[133:].equal(base[133:])


def test_gradcheck():
    *leaves, cu_seqlens = packed([3, 0, 1, 4], 2, 1, 2, torch.float64)
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, cu_seqlens), leaves)


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_gradient_for_some_inputs(backend, wanted):
    *tensors, cu_seqlens = packed([17, 3])
    grad = upstream(tensors[0])
    every = dict(zip("qkv", results(attend, tensors, cu_seqlens, grad)[1:], strict=True))
    leaves = dict(zip("qkv", tensors, strict=True))
    leaves[wanted].requires_grad_()
    attend(*leaves.values(), cu_seqlens).backward(grad)
    assert leaves[wanted].grad.equal(every[wanted])
    assert all(x.grad is None for name, x in leaves.items() if name != wanted)


def test_views_and_expanded_gradients(backend):
    """Inputs cut from one wide tensor or transposed; gradients of stride 0 and transposed."""
    *tensors, cu_seqlens = packed([17, 65], 4, 4)
    wide = torch.cat(tensors, 1)
    cut = wide.split(4, 1)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors]
    grads = (
        torch.tensor(0.7).expand(tensors[0].shape),
        torch.randn(1, 4, 16).expand(tensors[0].shape),
        upstream(tensors[0]).transpose(0, 1).contiguous().transpose(0, 1),
    )
    for grad in grads:
        before = grad.clone()
        want = results(attend, tensors, cu_seqlens, grad.contiguous())
        for views in (cut, turned):
            got = results(attend, views, cu_seqlens, grad)
            assert all(a.equal(b) for a, b in zip(got, want, strict=True))
        assert grad.equal(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_does_not_depend_on_threads(cpp, dtype):
    *tensors, cu_seqlens = packed(LENGTHS, dtype=dtype)
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(results(attend, tensors, cu_seqlens, upstream(tensors[0])))
    torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_cpp_writes_all_its_outputs_and_nothing_else(cpp):
    """Outputs lie between guard rows and start as NaN: what is skipped or overrun shows."""
    q, k, v, cu_seqlens = packed([17, 0, 65], 6, 2, 24)
    tokens, guard = len(q), 3
    inside = slice(guard, guard + tokens)
    out, dq, dk, dv = (
        torch.full((tokens + 2 * guard, *x.shape[1:]), torch.nan) for x in (q, q, k, v)
    )
    lse = torch.full((6 * tokens + 2 * guard,), torch.nan)
    lse_inside = lse[guard:-guard]
    inputs = [x.data_ptr() for x in (q, k, v)]
    shape = (False, cu_seqlens.data_ptr(), 0, 3, 6, 2, 24, SCALE)
    cpp_attention._forward(*inputs, *shape, out[inside].data_ptr(), lse_inside.data_ptr(), 2)
    want_out, want_lse = cpp_attention.forward(q, k, v, cu_seqlens, 65, SCALE)
    assert out[inside].equal(want_out) and lse_inside.equal(want_lse.flatten())
    grad = upstream(q)
    saved = (out[inside].data_ptr(), lse_inside.data_ptr())
    grads = [x[inside].data_ptr() for x in (dq, dk, dv)]
    cpp_attention._backward(grad.data_ptr(), *inputs, *saved, *shape, *grads, 2)
    for output in (out, dq, dk, dv, lse):
        assert output[guard:-guard].isfinite().all()
        assert output[:guard].isnan().all() and output[-guard:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(backend, dtype):
    """Schema, fake outputs and autograd registration agree with what runs."""
    *tensors, cu_seqlens = packed([5, 0, 2], dtype=dtype)
    arguments = (*(x.requires_grad_() for x in tensors), cu_seqlens, 5, SCALE)
    torch.library.opcheck(_forward_op, arguments)
    with torch.no_grad():
        out, lse = _forward_op(*arguments)
        plain = [x.detach() for x in tensors]
        saved = (upstream(out), *plain, out, lse, cu_seqlens, 5, SCALE)
        torch.library.opcheck(_backward_op, saved)


def test_compiles_into_one_graph(backend):
    *tensors, cu_seqlens = packed([17, 65])
    compiled = torch.compile(attend_fixed, fullgraph=True, backend="aot_eager")
    grad = upstream(tensors[0])
    got = results(compiled, tensors, cu_seqlens, grad)
    want = results(attend, tensors, cu_seqlens, grad)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def attend_fixed(q, k, v, cu_seqlens, scale):
    """As a packed batch calls it: the longest sequence is known."""
    return kernels.varlen_attention(q, k, v, cu_seqlens, 65, scale=scale)


def test_autocast_brings_all_to_its_dtype(backend):
    *tensors, cu_seqlens = packed([17, 3])
    tensors[2] = tensors[2].bfloat16()  # as with norms of q and k, which leave those in float32
    leaves = [x.requires_grad_() for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*leaves, cu_seqlens)
        out.backward(upstream(out))
    assert out.dtype == torch.bfloat16
    assert [x.grad.dtype for x in leaves] == [x.dtype for x in tensors]


def test_a_forward_in_inference_mode_leaves_training_usable(backend):
    *tensors, cu_seqlens = packed([7, 19, 3])
    with torch.inference_mode():
        attend(*tensors, cu_seqlens)
    results(attend, tensors, cu_seqlens, upstream(tensors[0]))


def test_refusals():
    q, k, v, cu_seqlens = packed([3, 4])
    with pytest.raises(ValueError, match="a sequence of 4 tokens exceeds max_seqlen=3"):
        kernels.varlen_attention(q, k, v, cu_seqlens, 3, scale=SCALE)
    with pytest.raises(ValueError, match="must rise from 0 to 7"):
        kernels.varlen_attention(q, k, v, cu_seqlens[:-1], 4, scale=SCALE)
    with pytest.raises(ValueError, match="6 query heads cannot share 4"):
        wrong = torch.zeros(7, 4, 16)
        kernels.varlen_attention(q, wrong, wrong, cu_seqlens, 4, scale=SCALE)
    with pytest.raises(ValueError, match=r"v has shape \[6, 2, 16\]"):
        kernels.varlen_attention(q, k, v[:-1], cu_seqlens, 4, scale=SCALE)
    with pytest.raises(ValueError, match=r"v is torch\.float64, expected torch\.float32"):
        kernels.varlen_attention(q, k, v.double(), cu_seqlens, 4, scale=SCALE)
