"""adamw_split_: torch's AdamW on halves of float32 numbers; which no bit is lost between."""

import math

import pytest
import torch
from three_way import assert_same_bits, on_threads
from triton_rows import adamw_inputs, check_adamw_split, check_unmoved

import kernels
from kernels.ops.adamw_split import _op, step_factors

ORDER = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
GO, SKIP = torch.tensor(False), torch.tensor(True)


def inputs(n, seed=0):
    """(weight, low, grad, exp_avg, exp_avg_sq, step) of n entries."""
    (weight,), (m,), (v,), (step,) = adamw_inputs([n])
    grad = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return *kernels.split_bits(weight), grad, m, v, step


def update(tensors, skip=GO, **changes):
    kernels.adamw_split_(*([x] for x in tensors), **(ORDER | changes), skip=skip)


def bits(x):
    return x.view(torch.int32) if x.dtype == torch.float32 else x.view(torch.int16)


def test_every_number_comes_back():
    """All 2^16 upper halves, NaNs and denormals included, with lower halves around a tie."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32)[:, None] << 16
    for lower in (0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | lower).view(torch.float32)
        high, low = kernels.split_bits(x)
        assert bits(kernels.join_bits(high, low)).equal(bits(x))
        assert low.int().equal(torch.full_like(upper, lower - (2**16 if lower >= 2**15 else 0)))
        real = x.isfinite()
        nearest = x.bfloat16()
        if lower != 0x8000:
            assert bits(high)[real].equal(bits(nearest)[real])
        else:  # away from zero; torch takes the even one, of two as near
            assert bits(high)[real].equal(((bits(x)[real] >> 16) + 1).to(torch.int16))
    assert kernels.split_bits(x[::3])[0].is_contiguous()


# No entry, one, below, at and above a register, a block of 4,096 and one more, and many blocks.
@pytest.mark.parametrize("beta1", [0.9, 0.2, 0.0])
def test_is_adamw(backend, beta1):
    check_adamw_split([0, 1, 15, 16, 17, 4096, 4097, 40_001], beta1=beta1)
    check_adamw_split([17], beta1=beta1, lr=torch.tensor(1e-3), weight_decay=0.0)


def test_no_rate_moves_nothing(backend):
    check_unmoved()


def test_first_step_moves_by_the_rate(backend):
    weight = torch.tensor([1.0, -2.0, 3.0, 0.5])
    halves, zero = kernels.split_bits(weight), torch.zeros(4)
    grad = torch.tensor([4.0, -0.5, 1e-3, 0.0])
    update((*halves, grad, zero, zero.clone(), torch.tensor(1.0)), lr=0.1, weight_decay=0.0)
    want = torch.tensor([0.9, -1.9, 2.9, 0.5])
    torch.testing.assert_close(kernels.join_bits(*halves), want, rtol=0, atol=2e-6)


def test_small_steps_are_not_lost(backend):
    """Each is a thousandth of what bfloat16 resolves; the copy moves when they add up."""
    halves, zero = kernels.split_bits(torch.ones(5)), torch.zeros(5)
    start, moments = halves[0].clone(), (zero, zero.clone())
    for step in range(1, 1001):
        grad = torch.ones(5)
        update((*halves, grad, *moments, torch.tensor(float(step))), lr=4e-6, weight_decay=0.0)
        assert step > 400 or halves[0].equal(start)
    assert kernels.join_bits(*halves).tolist() == pytest.approx([1 - 4e-3] * 5, abs=2e-5)
    assert halves[0].tolist() == [1 - 2.0**-8] * 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.0])
def test_a_skipped_step_changes_nothing(backend, bad):
    tensors = inputs(4099)
    tensors[2][17] = bad
    before = [x.clone() for x in tensors]
    update((*tensors[:-1], torch.tensor(0.0)), SKIP)
    assert all(bits(a).equal(bits(b)) for a, b in zip(tensors, before, strict=True))
    update(tensors)
    assert not tensors[1].equal(before[1])
    assert kernels.join_bits(*tensors[:2]).isfinite().all() == math.isfinite(bad)


def test_views_that_are_not_aligned(backend):
    want, whole = inputs(257), inputs(259)
    views = [x[1:-1].copy_(y) if x.ndim else x for x, y in zip(whole, want, strict=True)]
    guards = [x[[0, -1]].clone() for x in whole[:-1]]
    update((*views[:2], views[2].repeat_interleave(2)[::2], *views[3:]))
    update(want)
    assert all(a.equal(b) for a, b in zip(views, want, strict=True))
    assert all(x[[0, -1]].equal(y) for x, y in zip(whole, guards, strict=False))


def test_cpp_is_torch_to_the_bit_in_whole_registers(cpp):
    """Where its fused kernel has AVX-512, as ours; what is left of 16 entries it does otherwise."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.__version__[:4] != "2.13":
        pytest.skip("bits are compared with torch 2.13 on AVX-512 only")
    high, low, grad, m, v, step = inputs(16 * 1000)
    leaf = torch.nn.Parameter(kernels.join_bits(high, low))
    leaf.grad, names = grad, ("lr", "eps", "weight_decay")
    betas = ORDER["beta1"], ORDER["beta2"]
    adamw = torch.optim.AdamW([leaf], **{k: ORDER[k] for k in names}, betas=betas, fused=True)
    state = {"exp_avg": m.clone(), "exp_avg_sq": v.clone(), "step": step - 1}
    adamw.state[leaf] = state
    adamw.step()
    update((high, low, grad, m, v, step))
    assert m.equal(state["exp_avg"]) and v.equal(state["exp_avg_sq"])
    assert kernels.join_bits(high, low).equal(leaf.detach())


def test_cpp_does_not_depend_on_threads(cpp):
    def call():
        tensors = inputs(40_001)
        update(tensors)
        return tensors

    assert_same_bits(on_threads(call))


def test_factors_of_early_and_late_steps():
    found = step_factors(torch.tensor([1.0, 2000.0]), 0.5, 0.9, 0.999, 0.1)
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx([0.95, -5.0, 0.001**0.5], rel=1e-6)
    assert found[1].tolist() == pytest.approx([0.95, -0.5, (1 - 0.999**2000) ** 0.5], rel=1e-6)


def test_no_weights_and_opcheck(backend):
    kernels.adamw_split_([], [], [], [], [], [], **ORDER, skip=GO)
    *tensors, step = inputs(17)
    factors = step_factors(step[None], 1e-3, 0.9, 0.999, 0.1)
    columns = [[x] for x in tensors]
    torch.library.opcheck(_op, (*columns, factors, GO, 0.9, 0.999, 1e-8))


def test_refusals():
    *tensors, step = inputs(6)
    with pytest.raises(ValueError, match=r"low is torch\.int32"):
        update((tensors[0], tensors[1].int(), *tensors[2:], step))
    with pytest.raises(ValueError, match="grad has shape"):
        update((*tensors[:2], tensors[2][:5], *tensors[3:], step))
    with pytest.raises(ValueError, match="exp_avg_sq is changed in place and not dense"):
        update((*tensors[:4], torch.zeros(12)[::2], step))
    with pytest.raises(ValueError, match=r"lists of \[0, 1, 1, 1, 1, 1\]"):
        kernels.adamw_split_([], *([x] for x in (*tensors[1:], step)), **ORDER, skip=GO)
    with pytest.raises(ValueError, match="skip is"):
        update((*tensors, step), torch.tensor(0.0))
    with pytest.raises(ValueError, match="x is"):
        kernels.split_bits(torch.ones(3).bfloat16())
