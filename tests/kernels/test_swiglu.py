"""swiglu: to the bit against transformers on the torch backend, three-way on both."""

import pytest
import torch
import torch.nn.functional as F
from three_way import (
    assert_guards,
    assert_same_bits,
    compare,
    guarded,
    on_threads,
    run,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2MLP

import kernels
from kernels.cpp_impl import swiglu as cpp_op
from kernels.ops.swiglu import _backward_op, _forward_op

DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(gate, up):
    return F.silu(gate) * up


def check(gate, up, upstream):
    return compare(kernels.swiglu, plain, (gate, up), (upstream,), 1e-6, "out d_gate d_up")


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_is_transformers_to_the_bit(dtype):
    mlp = Qwen2MLP(Qwen2Config(hidden_size=8, intermediate_size=24)).to(dtype)
    x = draw(17, 8, dtype=dtype)
    with kernels.override("torch"):
        got = mlp.down_proj(kernels.swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    assert got.equal(mlp(x))


# Widths as in other grids; 17 · 257 entries are one block of 4,096 and some of another.
@pytest.mark.parametrize("rows", [1, 2, 17, 128])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 127, 257])
@pytest.mark.parametrize("dtype", DTYPES)
def test_grid(backend, rows, width, dtype):
    check(*(draw(rows, width, dtype=dtype, seed=i) for i in range(3)))


def test_t16_extremes(backend):
    # exp(89) overflows float32; beyond it silu is x or 0
    gate = torch.tensor([0.0, -0.0, 20.0, -20.0, 87.0, -87.0, 89.0, -89.0, 1e4, -1e4])
    got = check(gate, torch.full_like(gate, 3.0), draw(10))
    assert all(x.isfinite().all() for x in got)
    gate[1] = torch.nan
    assert kernels.swiglu(gate, torch.ones(10)).isnan().nonzero().tolist() == [[1]]


def test_any_shape_and_strides(backend):
    halves = draw(5, 7, 2 * 16).chunk(2, -1)  # of one wide projection
    check(*halves, draw(5, 7, 32, seed=1)[..., ::2])
    check(*halves, torch.ones(()).expand(5, 7, 16))
    assert kernels.swiglu(draw(0, 8), draw(0, 8)).shape == (0, 8)


def test_cpp_does_not_depend_on_threads(cpp):
    tensors = [draw(129, 257, seed=i) for i in range(3)]
    assert_same_bits(on_threads(lambda: run(kernels.swiglu, tensors[:2], tensors[2:])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_writes_all_its_outputs_and_nothing_else(cpp, dtype):
    gate, up, grad = (draw(4099, dtype=dtype, seed=i) for i in range(3))
    wholes, outputs = zip(*(guarded(4099, dtype=dtype) for _ in range(3)), strict=True)
    data = [x.data_ptr() for x in (grad, gate, up)]
    out, d_gate, d_up = (x.data_ptr() for x in outputs)
    cpp_op._forward(*data[1:], dtype == torch.bfloat16, 4099, out, 2)
    cpp_op._backward(*data, dtype == torch.bfloat16, 4099, d_gate, d_up, 2)
    for whole in wholes:
        assert_guards(whole)


def test_gradcheck():
    gate, up = (draw(3, 5, seed=i).double().requires_grad_() for i in range(2))
    assert torch.autograd.gradcheck(kernels.swiglu, (gate, up))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(backend, dtype):
    gate, up = (draw(2, 3, 5, dtype=dtype, seed=i).requires_grad_() for i in range(2))
    torch.library.opcheck(_forward_op.op, (gate, up))
    torch.library.opcheck(_backward_op.op, tuple(x.detach() for x in (up, gate, up)))


def test_compiles_as_one_graph(backend):
    tensors, upstream = [draw(17, 16, seed=i) for i in range(2)], (draw(17, 16, seed=2),)
    compiled = torch.compile(kernels.swiglu, fullgraph=True, backend="aot_eager")
    got, want = (run(function, tensors, upstream) for function in (compiled, kernels.swiglu))
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_refusals():
    with pytest.raises(ValueError, match="up has shape"):
        kernels.swiglu(draw(3, 8), draw(3, 7))
    with pytest.raises(ValueError, match=r"up is torch\.bfloat16, expected torch\.float32"):
        kernels.swiglu(draw(3, 8), draw(3, 8).bfloat16())
