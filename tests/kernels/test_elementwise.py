"""rms_norm, rope and swiglu against transformers, to the bit, and their gradients."""

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Config,
    Qwen2MLP,
    Qwen2RMSNorm,
    apply_rotary_pos_emb,
)

import kernels

DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Widths as in the other grids: around a tile, and a size that no vector divides.
@pytest.mark.parametrize("width", [1, 127, 128, 129, 257])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_that_of_transformers(dtype, width):
    x, residual = draw(17, width, dtype=dtype), draw(17, width, dtype=dtype, seed=1)
    norm = Qwen2RMSNorm(width, eps=1e-6).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(draw(width, seed=2))
    assert kernels.rms_norm(x, norm.weight, 1e-6).equal(norm(x))
    y, total = kernels.rms_norm(x, norm.weight, 1e-6, residual)
    assert total.equal(x + residual) and y.equal(norm(total))


def test_rms_norm_of_extremes():
    # Squares of 1e4 overflow float16, not float32; zeros must not divide by zero.
    x = torch.stack((torch.full((128,), 1e4), torch.zeros(128), torch.full((128,), 1e-6)))
    y = kernels.rms_norm(x, torch.ones(128), 1e-6)
    assert y.isfinite().all() and y[0].allclose(torch.ones(128)) and y[1].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_is_that_of_transformers(dtype):
    tokens, size = 17, 16
    q, k = draw(tokens, 6, size, dtype=dtype), draw(tokens, 2, size, dtype=dtype, seed=1)
    angles = torch.arange(tokens)[:, None] * 0.3 ** torch.arange(size // 2)
    cos, sin = angles.cos(), angles.sin()
    whole = [torch.cat((x, x), -1)[None].to(dtype) for x in (cos, sin)]
    want = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *whole)
    got = kernels.rope(q, k, cos, sin)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype and a.equal(b[0].transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_is_that_of_transformers(dtype):
    mlp = Qwen2MLP(Qwen2Config(hidden_size=8, intermediate_size=24)).to(dtype)
    x = draw(17, 8, dtype=dtype)
    got = mlp.down_proj(kernels.swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    assert got.equal(mlp(x))


def test_gradients():
    def leaf(*shape, seed=0):
        return draw(*shape, dtype=torch.float64, seed=seed).requires_grad_()

    x, residual, weight = leaf(3, 5), leaf(3, 5, seed=1), leaf(5, seed=2)
    assert torch.autograd.gradcheck(
        lambda x, w, r: kernels.rms_norm(x, w, 1e-6, r), (x, weight, residual)
    )
    q, k, angles = leaf(3, 2, 4), leaf(3, 1, 4, seed=1), draw(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k: kernels.rope(q, k, angles.cos(), angles.sin()), (q, k)
    )
    assert torch.autograd.gradcheck(kernels.swiglu, (x, residual))


def test_compiles_as_one_graph():
    def layer(x, weight, residual):
        y, total = kernels.rms_norm(x, weight, 1e-6, residual)
        return kernels.swiglu(y, total)

    arguments = draw(17, 8), draw(8, seed=1), draw(17, 8, seed=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert compiled(*arguments).allclose(layer(*arguments), atol=1e-6)


def test_refusals():
    x = draw(3, 8)
    with pytest.raises(ValueError, match=r"weight has shape \[7\], expected \[8\]"):
        kernels.rms_norm(x, torch.ones(7), 1e-6)
    with pytest.raises(ValueError, match=r"residual has shape \[3, 7\]"):
        kernels.rms_norm(x, torch.ones(8), 1e-6, draw(3, 7))
    with pytest.raises(ValueError, match=r"cos has shape \[3, 8\], expected \[3, 4\]"):
        kernels.rope(draw(3, 1, 8), draw(3, 1, 8), draw(3, 8), draw(3, 8))
    with pytest.raises(ValueError, match="up has shape"):
        kernels.swiglu(x, draw(3, 7))
