"""Mixed precision: float32 masters, and a copy of them in bfloat16 that computes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import WeightSum, product
from trainer.allocator import Gaps
from trainer.model.decoder import Decoder
from trainer.model.embedding import Embedding
from trainer.model.linear import Linear


def has_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware ("cpu" or "cuda")."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in features and torch.cpu._is_avx512_bf16_supported()


def working_copy(master: Decoder, dtype: torch.dtype) -> Decoder:
    """The model that computes for `master`, in `dtype`: `master` itself where that is its own.

    Whenever a backward pass has made a gradient of the copy, it moves to the master's `grad`, in
    float32: micro-batches are summed there, and the copy holds no gradients. On the CPU those of
    linear layers and of the embedding are made there and never rounded. The copy's weights are set
    by the optimizer (optim.py), which is given both.
    """
    if master.head_weight.dtype == dtype:
        return master
    copy = empty_copy(master, dtype)
    sums = send_gradients(copy, master)
    if master.head_weight.device.type == "cpu":
        for name, layer in copy.named_modules():
            kind = {Linear: WorkingLinear, Embedding: WorkingEmbedding}.get(type(layer))
            if kind is not None:
                layer.__class__, layer.sum = kind, sums[name + ".weight"]
    return copy


def empty_copy(master: Decoder, dtype: torch.dtype) -> Decoder:
    """A decoder of the same sizes on the same device, its weights still to be set."""
    empty = Decoder(master.config, device="meta", dtype=dtype)  # no initial values to be drawn
    return empty.to_empty(device=master.head_weight.device)


def send_gradients(copy: Decoder, master: Decoder) -> dict[str, Sum]:
    """Makes each gradient of `copy` move to the master's, as working_copy says; by name."""
    gaps = Gaps()
    sums = {name: Sum(parameter, gaps) for name, parameter in master.named_parameters()}
    for name, working in copy.named_parameters():
        working.register_post_accumulate_grad_hook(sums[name].take)
    return sums


class Sum:
    """The gradient of a master parameter, added up over micro-batches."""

    def __init__(self, parameter: Tensor, gaps: Gaps) -> None:
        self._parameter, self._gaps = parameter, gaps

    def take(self, working: Tensor) -> None:
        """Adds the gradient of `working`, which loses it, if it has one."""
        gradient, working.grad = working.grad, None
        if gradient is None:
            return
        if self._begins():
            self._parameter.grad.copy_(gradient)
        else:
            self._parameter.grad.add_(gradient)

    def place(self) -> WeightSum:
        """Where something is added that is no tensor yet."""
        begins = self._begins()
        return WeightSum(self._parameter.grad, not begins)

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Adds a · b."""
        out, add = self.place()
        product(a, b, out, add=add)

    def add_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Adds rows [T, H] to those of ids int64 [T]."""
        if self._begins():
            self._parameter.grad.zero_()
        self._parameter.grad.index_add_(0, ids, rows.to(self._parameter.dtype))

    def _begins(self) -> bool:
        """Whether there is no gradient yet; it then has memory, with anything in it."""
        if self._parameter.grad is not None:
            return False
        self._parameter.grad = torch.empty_like(self._parameter)
        if self._parameter.device.type == "cpu":
            self._gaps.took(self._parameter.nbytes)
        return True


class WorkingLinear(nn.Linear):
    """nn.Linear whose weight's gradient is added to the master's, `sum`, in the backward pass."""

    sum: Sum

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] to [T, out]."""
        if not torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        return _Linear.apply(x, self.weight, self.bias, self.sum)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, total: Sum) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.sum = bias is not None, total
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        ctx.sum.add_product(grad.t(), x)
        return grad @ weight, None, grad.sum(0) if ctx.has_bias else None, None


class WorkingEmbedding(Embedding):
    """Embedding of which the same holds; only the rows of its tokens are touched."""

    sum: Sum

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [T, H] of ids int64 [T]."""
        return _Rows.apply(self.weight, ids, self.sum)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, total: Sum) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.sum = total
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.sum.add_rows(*ctx.saved_tensors, grad)
        return None, None, None
