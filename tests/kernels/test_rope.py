"""rope: to the bit against transformers on the torch backend, three-way on both."""

import pytest
import torch
from three_way import (
    assert_guards,
    assert_same_bits,
    compare,
    guarded,
    on_threads,
    run,
)
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

import kernels
from kernels.cpp_impl import rope as cpp_op
from kernels.ops.rope import _op

DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def angles(tokens, size):
    """cos and sin, float32 [tokens, size / 2]."""
    angle = torch.arange(tokens)[:, None] * 0.3 ** torch.arange(size // 2)
    return angle.cos(), angle.sin()


def functions(cos, sin, dtype):
    """(the op, plain torch): the latter on angles rounded to `dtype`, as the op rounds them."""

    def rotate(x):
        c, s = (t.to(dtype).to(x.dtype)[:, None] for t in (cos, sin))
        first, second = x.chunk(2, -1)
        return torch.cat((first * c - second * s, second * c + first * s), -1)

    return lambda q, k: kernels.rope(q, k, cos, sin), lambda q, k: (rotate(q), rotate(k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_is_transformers_to_the_bit(dtype):
    tokens, size = 17, 16
    q, k = draw(tokens, 6, size, dtype=dtype), draw(tokens, 2, size, dtype=dtype, seed=1)
    cos, sin = angles(tokens, size)
    whole = [torch.cat((x, x), -1)[None].to(dtype) for x in (cos, sin)]
    want = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *whole)
    with kernels.override("torch"):
        got = kernels.rope(q, k, cos, sin)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype and a.equal(b[0].transpose(0, 1))


# Head sizes: a pair, less than, exactly and more than a register of pairs, those of real models.
@pytest.mark.parametrize("size", [2, 16, 32, 34, 64, 128])
@pytest.mark.parametrize("tokens", [1, 2, 17, 129])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grid(backend, tokens, size, dtype):
    q, k = draw(tokens, 3, size, dtype=dtype), draw(tokens, 1, size, dtype=dtype, seed=1)
    upstream = (
        draw(tokens, 3, size, dtype=dtype, seed=2),
        draw(tokens, 1, size, dtype=dtype, seed=3),
    )
    compare(*functions(*angles(tokens, size), dtype), (q, k), upstream, 1e-6, "q k d_q d_k")


def test_strides(backend):
    """Slices of one projection, heads before tokens, gradients of stride 0 and with gaps."""
    both = functions(*angles(17, 16), torch.float32)
    whole = draw(17, 5, 16)
    upstream = torch.ones(()).expand(17, 3, 16), draw(17, 2, 32, seed=1)[..., ::2]
    for q, k in ((whole[:, :3], whole[:, 3:]), (draw(3, 17, 16).transpose(0, 1), upstream[1])):
        compare(*both, (q, k), upstream, 1e-6, "q k d_q d_k")
        assert all(x.is_contiguous() for x in both[0](q, k))


def test_gradient_of_one_output_only(backend):
    both = functions(*angles(17, 16), torch.float32)
    q, k, grad = draw(17, 3, 16), draw(17, 1, 16, seed=1), draw(17, 3, 16, seed=2)
    q.requires_grad_(), k.requires_grad_()
    both[0](q, k)[0].backward(grad)
    want = torch.autograd.grad(both[1](q, k)[0], q, grad)[0]
    torch.testing.assert_close(q.grad, want)
    assert k.grad.eq(0).all()


def test_no_tokens(backend):
    q, k = kernels.rope(draw(0, 3, 16), draw(0, 1, 16), *angles(0, 16))
    assert q.shape == (0, 3, 16) and k.shape == (0, 1, 16)


def test_cpp_does_not_depend_on_threads(cpp):
    q, k, both = draw(700, 3, 16), draw(700, 1, 16), functions(*angles(700, 16), torch.float32)
    assert_same_bits(on_threads(lambda: run(both[0], (q, k), (q, k))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_writes_all_its_outputs_and_nothing_else(cpp, dtype):
    q, k = draw(17, 3, 34, dtype=dtype), draw(17, 2, 34, dtype=dtype)
    cos, sin = angles(17, 34)
    wholes, outputs = zip(*(guarded(*x.shape, dtype=dtype) for x in (q, k)), strict=True)
    cpp_op._rope(
        *(q.data_ptr(), k.data_ptr(), dtype == torch.bfloat16, cos.data_ptr(), sin.data_ptr()),
        *(17, 3, 2, 17, cpp_op._Strides(*q.stride()[:2], *k.stride()[:2])),
        *(x.data_ptr() for x in outputs),
        2,
    )
    for whole in wholes:
        assert_guards(whole)


def test_gradcheck():
    q, k, angle = (draw(*s).double() for s in ((3, 2, 4), (3, 1, 4), (3, 2)))
    both = functions(angle.cos(), angle.sin(), torch.float64)
    assert torch.autograd.gradcheck(both[0], (q.requires_grad_(), k.requires_grad_()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(backend, dtype):
    q, k = draw(3, 2, 4, dtype=dtype), draw(3, 1, 4, dtype=dtype)
    torch.library.opcheck(_op.op, (q.requires_grad_(), k.requires_grad_(), *angles(3, 4)))


def test_compiles_as_one_graph(backend):
    q, k = draw(17, 3, 16), draw(17, 1, 16, seed=1)
    op, _ = functions(*angles(17, 16), torch.float32)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    got, want = (run(function, (q, k), (q, k)) for function in (compiled, op))
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_refusals():
    with pytest.raises(ValueError, match=r"cos has shape \[3, 8\], expected \[3, 4\]"):
        kernels.rope(draw(3, 1, 8), draw(3, 1, 8), draw(3, 8), draw(3, 8))
    with pytest.raises(ValueError, match=r"k is torch\.bfloat16, expected torch\.float32"):
        kernels.rope(draw(3, 1, 8), draw(3, 1, 8).bfloat16(), *angles(3, 8))
