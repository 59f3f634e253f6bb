"""The halves of a layer around its attention: a float64 truth, and plain torch in bfloat16."""

from __future__ import annotations

import pytest
import torch
from three_way import assert_same_bits, assert_three_way, on_threads
from torch import Tensor

import kernels
from kernels import AfterAttention, BeforeAttention, Linear, WeightSum
from kernels.cpp_impl import half_layers as cpp
from kernels.implementations import HALF_LAYERS
from kernels.torch_ref import half_layers as reference

# Hidden, query heads, key/value heads, head size, inner. Panels of 48 columns filled, over by one
# lane or by part of one; sizes below a register; grouped heads.
SIZES = [(48, 3, 3, 16, 96), (130, 4, 2, 32, 358), (2, 1, 1, 2, 2), (64, 2, 1, 10, 34)]
# One, a block of 32, odd ones around it, a tile of 128 and more; a chunk of 2,048 and one token.
TOKENS = [1, 31, 32, 33, 127, 128, 129, 257, 1000, 2049]


class Case:
    """Weights, inputs and upstream gradients of both halves."""

    def __init__(self, sizes, tokens: int, *, bias: bool = False) -> None:
        hidden, heads, kv_heads, size, inner = sizes
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def linear(outputs: int, inputs: int) -> Linear:
            weight = draw(outputs, inputs) / inputs**0.5
            return Linear(weight, draw(outputs) if bias else None)

        wide, narrow = heads * size, kv_heads * size
        qkv = (linear(wide, hidden), linear(narrow, hidden), linear(narrow, hidden))
        self.before = BeforeAttention(draw(hidden), 1e-6, *qkv, size)
        mlp = (linear(inner, hidden), linear(inner, hidden), linear(hidden, inner))
        self.after = AfterAttention(draw(hidden), 1e-6, linear(hidden, wide), *mlp)
        self.angles = draw(tokens, size // 2).cos(), draw(tokens, size // 2).sin()
        self.update, self.residual, self.d_total, self.d_update = draw(4, tokens, hidden)
        self.d_q, self.attended = draw(tokens, heads, size), draw(tokens, wide)
        self.d_k, self.d_v = draw(2, tokens, kv_heads, size)
        self.gate, self.up = draw(2, tokens, inner)

    def arguments(self, op: str, *, alone: bool) -> tuple:
        """Those of `op` but for sums; alone: without what may be missing."""
        residual, d_total = (None, None) if alone else (self.residual, self.d_total)
        return {
            "before_attention": (self.before, self.update, residual, *self.angles),
            "before_attention_backward": (
                *(self.before, self.update, *self.angles),
                *(d_total, self.d_q, self.d_k, self.d_v),
            ),
            "after_attention": (self.after, self.attended, self.residual),
            "after_attention_backward": (
                *(self.after, self.attended, self.residual, self.gate, self.up),
                *(self.d_update, d_total),
            ),
        }[op]


def cast(x, dtype: torch.dtype, angles: tuple[Tensor, ...]):
    """Rounded to bfloat16, then in `dtype`; angles stay float32 but for the truth."""
    if isinstance(x, Tensor):
        if any(x is angle for angle in angles):
            return x.bfloat16().double() if dtype == torch.float64 else x
        return x.bfloat16().to(dtype)
    if isinstance(x, tuple):
        parts = (cast(part, dtype, angles) for part in x)
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return x


def outputs(module, op: str, arguments: tuple, *, fresh: bool = False) -> list[Tensor | None]:
    """All that `op` makes, sums too: the first, or all if `fresh`, are new, others add to 1."""
    if op == "before_attention":
        return list(module.before_attention(*arguments))
    if op == "after_attention":
        return list(module.after_attention(*arguments, keep=True))
    linear = [x for x in arguments[0] if isinstance(x, Linear)]
    wide = torch.promote_types(linear[0].weight.dtype, torch.float32)
    sums = [
        WeightSum(torch.full(x.weight.shape, 1.0 if add else torch.nan, dtype=wide), add)
        for x, add in zip(linear, [False, *[not fresh] * 3], strict=False)
    ]
    *found, biases = getattr(module, op)(*arguments, sums)
    return [*found, *biases, *(s.out for s in sums)]


@pytest.fixture(autouse=True)
def needed(request) -> None:
    found = kernels.active_backends(dtype=torch.bfloat16)
    if "plain" not in request.node.name and found["before_attention"] != "cpp":
        pytest.skip("this processor has no AVX-512 BF16, or AMX, or there is no compiled library")


@pytest.mark.parametrize("op", HALF_LAYERS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_any_number_of_tokens(tokens, op):
    check(Case(SIZES[1], tokens), op)


@pytest.mark.parametrize("op", HALF_LAYERS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("alone", [False, True])
def test_any_sizes_with_biases(sizes, op, alone):
    check(Case(sizes, 75, bias=True), op, alone=alone)


def check(case: Case, op: str, *, alone: bool = False) -> None:
    arguments = case.arguments(op, alone=alone)
    low, wide = (cast(arguments, d, case.angles) for d in (torch.bfloat16, torch.float64))
    got = outputs(kernels, op, low)
    plain, truth = (outputs(reference, op, a) for a in (low, wide))
    for index, (a, b, c) in enumerate(zip(got, plain, truth, strict=True)):
        if c is None:
            assert a is None and b is None
            continue
        assert a.dtype == b.dtype
        scale = float(c.abs().max())
        assert_three_way(a, b, c, 2**-10 * scale, f"{op}, output {index}")


def leaves_of(layer) -> list[Tensor]:
    linear = (p for x in layer if isinstance(x, Linear) for p in x)
    return [p.requires_grad_() for p in (layer.norm, *linear)]


def test_plain_torch_gives_the_gradients_of_autograd():
    """The reference's own backward functions, in float64."""
    case = Case(SIZES[1], 9, bias=True)
    for op in ("before_attention", "after_attention"):
        layer, *given = cast(case.arguments(op + "_backward", alone=False), torch.float64, ())
        leaves = leaves_of(layer)
        if op == "before_attention":
            x, cos, sin, *upstream = given
            inputs = [x.requires_grad_()]
            made = reference.before_attention(layer, x, torch.zeros_like(x), cos, sin)
        else:
            attended, residual, _, _, *upstream = given
            inputs = [residual.requires_grad_(), attended.requires_grad_()]
            update, total, gate, up = reference.after_attention(
                layer, attended, residual, keep=True
            )
            given = [attended, total, gate, up, *upstream]
            made = update, total
        want = torch.autograd.grad(made, [*inputs, *leaves], upstream)
        with torch.no_grad():
            got = outputs(reference, op + "_backward", (layer, *given), fresh=True)
        of_norm = len(inputs) + 1
        weights, biases = want[of_norm::2], want[of_norm + 1 :: 2]
        torch.testing.assert_close(got, [*want[:of_norm], *biases, *weights])


@pytest.mark.parametrize("op", HALF_LAYERS)
def test_the_number_of_threads_does_not_matter(op):
    case = Case(SIZES[1], 2500, bias=True)
    low = cast(case.arguments(op, alone=False), torch.bfloat16, case.angles)
    assert_same_bits(on_threads(lambda: tuple(outputs(kernels, op, low))))


def test_a_token_does_not_depend_on_the_others():
    case = Case(SIZES[1], 300)
    low = cast(case.arguments("before_attention", alone=False), torch.bfloat16, case.angles)
    whole = kernels.before_attention(*low)
    some = torch.tensor([3, 299, 40])
    layer, *tensors = low
    for a, b in zip(
        kernels.before_attention(layer, *(t[some] for t in tensors)), whole, strict=True
    ):
        assert torch.equal(a, b[some])


def test_what_is_not_kept_changes_nothing():
    case = Case(SIZES[1], 300)
    low = cast(case.arguments("after_attention", alone=False), torch.bfloat16, case.angles)
    kept, dropped = (kernels.after_attention(*low, keep=keep) for keep in (True, False))
    assert all(map(torch.equal, kept[:2], dropped[:2])) and dropped[2:] == (None, None)


def test_tensors_need_not_be_dense():
    case = Case(SIZES[1], 40)
    low = cast(case.arguments("after_attention_backward", alone=False), torch.bfloat16, ())
    layer, *tensors = low
    apart = [t.repeat_interleave(2, 1)[:, ::2] for t in tensors]
    a, b = (outputs(kernels, "after_attention_backward", (layer, *x)) for x in (tensors, apart))
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("op", HALF_LAYERS)
def test_no_tokens(op):
    case = Case(SIZES[1], 0)
    low = cast(case.arguments(op, alone=False), torch.bfloat16, case.angles)
    found = outputs(kernels, op, low)
    if op.endswith("backward"):
        sums = found[-3:] if op.startswith("before") else found[-4:]
        assert sums[0].eq(0).all() and all(s.eq(1).all() for s in sums[1:])


def test_what_is_not_a_number_stays_with_its_token():
    case = Case(SIZES[1], 50)
    case.update[7] = torch.nan
    low = cast(case.arguments("before_attention", alone=False), torch.bfloat16, case.angles)
    for x in kernels.before_attention(*low):
        assert x[7].isnan().all() and x[[*range(7), *range(8, 50)]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"update": torch.ones(5, 131)}, "update has shape"),
        ({"update": torch.ones(5, 130).double()}, "update is torch.float64"),
        ({"cos": torch.ones(5, 3)}, "cos has shape"),
        ({"sin": torch.ones(5, 16).double()}, "sin is torch.float64"),
        ({"q": Linear(torch.ones(128, 7))}, "q has shape"),
        ({"k": Linear(torch.ones(64, 130), torch.ones(3))}, "bias of k has shape"),
    ],
)
def test_plain_torch_says_what_does_not_fit(change, message):
    case = Case(SIZES[1], 5)
    layer = case.before._replace(**{n: x for n, x in change.items() if n in ("q", "k")})
    named = {"update": case.update, "residual": case.residual, "cos": case.angles[0]}
    named |= {"sin": case.angles[1]} | {n: x for n, x in change.items() if n not in ("q", "k")}
    with pytest.raises(ValueError, match=message):
        kernels.before_attention(layer, **named)


def test_plain_torch_sums_must_fit():
    case = Case(SIZES[1], 5)
    arguments = case.arguments("before_attention_backward", alone=False)
    sums = [WeightSum(torch.empty(x.weight.shape), False) for x in case.before[2:5]]
    for bad, message in ((torch.empty(3, 3), "has shape"), (sums[0].out.bfloat16(), "bfloat16")):
        with pytest.raises(ValueError, match=message):
            kernels.before_attention_backward(*arguments, [WeightSum(bad, False), *sums[1:]])
    apart = torch.empty(130, 128).t()
    with pytest.raises(ValueError, match="dense"):
        kernels.before_attention_backward(*arguments, [WeightSum(apart, False), *sums[1:]])


def test_odd_sizes_are_left_to_the_ops():
    def halves(hidden: int, inner: int) -> bool:
        case = Case((hidden, 2, 2, 4, inner), 1)
        return kernels.can_halve(*cast((case.before, case.after), torch.bfloat16, ()))

    assert halves(8, 6) == cpp.supported()
    assert not halves(7, 6) and not halves(8, 5)
