"""Row-wise model ops: RMS norm, rotary embedding, SwiGLU. Differentiable in all float inputs."""

from __future__ import annotations

from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_shape


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """weight · x / sqrt(mean(x²) + eps) over the last dimension; statistics in float32.

    x [..., H], weight [H]. With `residual` (shape of x) the norm is that of x + residual and the
    result is (y, x + residual). As in transformers' Qwen2 and Llama, the normalised value is
    rounded to the input dtype before it meets the weight.
    """
    require_shape("weight", weight, (x.shape[-1],))
    if residual is not None:
        require_shape("residual", residual, tuple(x.shape))
    return dispatch.select("rms_norm", x.device, x.dtype)(x, weight, eps, residual)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q [T, Hq, D] and k [T, Hkv, D] by the angles of their positions.

    cos, sin [T, D/2], one angle for each pair (x_i, x_{i + D/2}): the `rotate_half` convention of
    transformers (arXiv 2104.09864), with cos and sin rounded to the dtype of q as there.
    """
    tokens, _, size = q.shape
    require_shape("k", k, (tokens, None, size))
    require_shape("cos", cos, (tokens, size // 2))
    require_shape("sin", sin, (tokens, size // 2))
    return dispatch.select("rope", q.device, q.dtype)(q, k, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise; same shapes (arXiv 2002.05202)."""
    require_shape("up", up, tuple(gate.shape))
    return dispatch.select("swiglu", gate.device, gate.dtype)(gate, up)
