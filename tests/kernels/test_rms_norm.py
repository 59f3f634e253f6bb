"""rms_norm: to the bit against transformers on the torch backend, three-way on both."""

import pytest
import torch
from three_way import (
    VOCABULARIES,
    assert_guards,
    assert_same_bits,
    compare,
    error,
    guarded,
    on_threads,
    run,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

import kernels
from kernels.cpp_impl import rms_norm as cpp_op
from kernels.ops.rms_norm import _backward_op, _forward_op

EPS = 1e-6
F32, BF16 = torch.float32, torch.bfloat16


def draw(*shape, dtype=F32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(x, weight, residual=None):
    """As transformers writes it, after the addition."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    y = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(total.dtype)
    return y if residual is None else (y, total)


def op(x, weight, residual=None):
    return kernels.rms_norm(x, weight, EPS, residual)


def inputs(rows, width, dtypes=(F32, F32, F32)):
    shapes = (rows, width), (width,), (rows, width)
    return [draw(*s, dtype=d, seed=i) for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]


# Widths: below, at and above a register and two of them (as kernels step), and as in other grids.
@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, *VOCABULARIES[:-1]])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_torch_is_transformers_to_the_bit(dtype, width):
    x, weight, residual = inputs(17, width, (dtype,) * 3)
    norm = Qwen2RMSNorm(width, eps=EPS).to(dtype)
    with torch.no_grad(), kernels.override("torch"):
        norm.weight.copy_(weight)
        assert op(x, norm.weight).equal(norm(x))
        y, total = op(x, norm.weight, residual)
        assert total.equal(x + residual) and y.equal(norm(total))


# Rows: one, a block of the weight's gradient less one and plus one, and several blocks. That
# gradient sums up to 129 products: 4e-6 is 2 ulp of a sum of 16. Width 1 would have d_x = 0 / 0.
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 129])
@pytest.mark.parametrize("width", [4, 16, 31, 129, 257])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_grid(backend, rows, width, dtype):
    x, weight, residual = inputs(rows, width, (dtype,) * 3)
    upstream = draw(2, rows, width, dtype=dtype, seed=7)
    names = "y total d_x d_weight d_residual"
    got = compare(op, plain, (x, weight, residual), upstream, 4e-6, names)
    assert got[2].equal(got[4]) and got[1].equal(x + residual)
    compare(op, plain, (x, weight), upstream[:1], 4e-6, "y d_x d_weight")


# All that promotion makes of x, weight, residual; autocast gives (bf16, float32, float32).
@pytest.mark.parametrize("x", [F32, BF16])
@pytest.mark.parametrize("weight", [F32, BF16])
@pytest.mark.parametrize("residual", [None, F32, BF16])
def test_mixed_dtypes(backend, x, weight, residual):
    tensors = inputs(17, 129, (x, weight, residual or F32))
    upstream = draw(2, 17, 129, seed=7).bfloat16()  # exact in all of them
    if residual is None:
        compare(op, plain, tensors[:2], upstream[:1], 1e-6, "y d_x d_weight")
        return
    compare(op, plain, tensors, upstream, 1e-6, "y total d_x d_weight d_residual")


def test_any_leading_dimensions_and_strides(backend):
    x = draw(5, 7, 2, 16).transpose(0, 1)  # [7, 5, 2, 16], rows not in order
    weight, residual = draw(16, seed=1), draw(7, 5, 2, 16, seed=2)
    wide = draw(7, 5, 2, 32, seed=3)[..., ::2]  # not dense in the last dimension
    same = torch.ones(()).expand(7, 5, 2, 16)  # stride 0
    names = "y total d_x d_weight d_residual"
    compare(op, plain, (x, weight, residual), (wide, same), 1e-6, names)
    compare(op, plain, (wide, weight), (x,), 1e-6, "y d_x d_weight")


def test_gradient_of_one_output_only(backend):
    tensors, upstream = inputs(17, 129), draw(17, 129, seed=7)
    names = "y total d_x d_weight d_residual"
    compare(op, plain, tensors, (upstream, None), 1e-6, names)
    got = run(lambda *x: op(*x)[1], tensors, (upstream,))
    assert got[1].equal(upstream) and got[2] is None and got[3].equal(upstream)


def test_t16_extremes(backend):
    # Squares of 1e4 overflow float16, not float32; zeros must not divide by zero.
    x = torch.stack((torch.full((128,), 1e4), torch.zeros(128), torch.full((128,), 1e-6)))
    y = kernels.rms_norm(x, torch.ones(128), EPS)
    assert y.isfinite().all() and error(y[0], torch.ones(128)) < 1e-6 and y[1].eq(0).all()
    x[1, 100] = torch.nan
    y = kernels.rms_norm(x, torch.ones(128), EPS)
    assert y.isnan().any(1).tolist() == [False, True, False]


def test_no_rows(backend):
    y, total, d_x, d_weight, _ = run(op, inputs(0, 16), (torch.zeros(0, 16),) * 2)
    assert y.shape == total.shape == d_x.shape == (0, 16) and d_weight.eq(0).all()


def test_cpp_does_not_depend_on_threads(cpp):
    tensors = inputs(700, 129)
    upstream = draw(2, 700, 129, seed=7)
    assert_same_bits(on_threads(lambda: run(op, tensors, upstream)))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_cpp_writes_all_its_outputs_and_nothing_else(cpp, dtype):
    rows, width, low = 33, 129, dtype == BF16
    x, weight, residual = inputs(rows, width, (dtype,) * 3)
    wholes, (y, total, d_x) = zip(
        *(guarded(rows, width, dtype=dtype) for _ in range(3)), strict=True
    )
    whole_rstd, rstd = guarded(rows)
    whole_weight, d_weight = guarded(width, dtype=dtype)
    data = [t.data_ptr() for t in (x, residual, weight, y, total, rstd, d_x, d_weight)]
    x_, residual_, weight_, y_, total_, rstd_, d_x_, d_weight_ = data
    cpp_op._forward(
        *(x_, low, residual_, low, weight_, low, rows, width, EPS, y_, total_, rstd_, 2)
    )
    cpp_op._backward(*(y_, None, total_, low, weight_, low, rstd_, rows, width, d_x_, d_weight_, 2))
    for whole in (*wholes, whole_rstd, whole_weight):
        assert_guards(whole)


def test_gradcheck():
    x, weight, residual = (t.double().requires_grad_() for t in inputs(3, 5))
    assert torch.autograd.gradcheck(op, (x, weight, residual))
    assert torch.autograd.gradcheck(op, (x, weight))


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, F32, F32)])
def test_opcheck(backend, dtypes):
    x, weight, residual = (t.requires_grad_() for t in inputs(3, 5, dtypes))
    torch.library.opcheck(_forward_op.op, (x, weight, EPS, residual))
    torch.library.opcheck(_forward_op.op, (x, weight, EPS, None))
    y, total, rstd = _forward_op.op(*(t.detach() for t in (x, weight)), EPS, residual.detach())
    torch.library.opcheck(_backward_op.op, (y, total, total, weight.detach(), rstd))


def test_compiles_as_one_graph(backend):
    tensors, upstream = inputs(17, 16), draw(2, 17, 16, seed=7)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    got, want = (run(function, tensors, upstream) for function in (compiled, op))
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_refusals():
    x = draw(3, 8)
    with pytest.raises(ValueError, match=r"weight has shape \[7\], expected \[8\]"):
        kernels.rms_norm(x, torch.ones(7), EPS)
    with pytest.raises(ValueError, match=r"residual has shape \[3, 7\]"):
        kernels.rms_norm(x, torch.ones(8), EPS, draw(3, 7))
