"""The ops on fake CUDA tensors at full 1.5B size: shapes, dtypes and devices, with no GPU.

What an op's register_fake promises is what torch.compile and a dry run of the train step plan with.
How they come to be without a GPU is in trainer/plan/fake.py.
"""

import pytest
import torch

import kernels
from trainer.plan.fake import fake_tensors, why_no_cuda

ROWS, HIDDEN, VOCABULARY, MLP = 16_384, 1536, 151_936, 8960


@pytest.fixture(autouse=True)
def fake():
    if why_no_cuda():
        pytest.skip(why_no_cuda())
    with fake_tensors("cuda"):
        yield


def cuda(*shape, dtype=torch.bfloat16, grad=False):
    return torch.empty(*shape, dtype=dtype, device="cuda", requires_grad=grad)


def f32(*shape, grad=False):
    return cuda(*shape, dtype=torch.float32, grad=grad)


def i32(*shape):
    return cuda(*shape, dtype=torch.int32)


def i64(*shape):
    return cuda(*shape, dtype=torch.int64)


def check(tensor, shape, dtype):
    assert tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.device.type == "cuda"


def check_gradients(outputs, *inputs):
    """The op's backward formula gives each input a gradient of its kind; plain torch has none."""
    node = outputs[0].grad_fn
    if "lcpo" not in type(node).__name__:
        return
    grads = [torch.empty_like(x) for x in outputs]
    grads += [None] * (len(node._input_metadata) - len(grads))
    found = [x for x in node.apply(*grads) if x is not None]
    for x in found:
        check(x, tuple(x.shape), x.dtype)
    kinds = [sorted((tuple(x.shape), str(x.dtype)) for x in group) for group in (found, inputs)]
    assert kinds[0] == kinds[1]


def test_linear_logprob():
    hidden, weight = cuda(ROWS, HIDDEN, grad=True), cuda(VOCABULARY, HIDDEN, grad=True)
    outputs = kernels.linear_logprob(hidden, weight, i64(ROWS), temperature=0.6)
    for x in outputs:
        check(x, (ROWS,), torch.float32)
    check_gradients(outputs, hidden, weight)


def test_logprob_from_logits():
    logits = cuda(256, VOCABULARY, grad=True)
    outputs = kernels.logprob_from_logits(logits, i64(256), temperature=0.6)
    for x in outputs:
        check(x, (256,), torch.float32)
    check_gradients(outputs, logits)


def test_rewards_and_loss():
    counts = kernels.count_lengths(i64(ROWS), i32(65), eos_id=1, think_end=(2, 3))
    for x in counts[:3]:
        check(x, (64,), torch.int32)
    check(counts.truncated, (64,), torch.bool)
    spec = kernels.RewardSpec("linear", 0.0003, 0.0003, 0.5)
    terms = kernels.lcpo_advantage(f32(64), *(i32(64) for _ in range(4)), 8, reward=spec)
    for x in terms:
        check(x, (64,), torch.float32)
    logprob, entropy = f32(ROWS, grad=True), f32(ROWS, grad=True)
    loss, stats = kernels.policy_loss(
        *(logprob, f32(ROWS), f32(ROWS), entropy, f32(64), f32(64), i32(ROWS)),
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.001,
        kl_grad="k3",
        entropy_coef=0.001,
    )
    for x in (loss, *stats):
        check(x, (), torch.float32)
    check_gradients([loss], logprob, entropy)


def test_linear_policy_loss():
    hidden, weight = cuda(ROWS, HIDDEN, grad=True), cuda(VOCABULARY, HIDDEN, grad=True)
    loss, stats, logprob = kernels.linear_policy_loss(
        *(hidden, weight, i64(ROWS), f32(ROWS), f32(ROWS), f32(64), f32(64), i32(ROWS)),
        temperature=0.6,
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.001,
        kl_grad="k3",
        entropy_coef=0.001,
    )
    for x in (loss, *stats):
        check(x, (), torch.float32)
    check(logprob, (ROWS,), torch.float32)
    check_gradients([loss], hidden, weight)


def test_sample_tokens():
    logits = cuda(256, VOCABULARY)
    drawn = kernels.sample_tokens(
        logits, temperature=0.6, top_p=0.95, seeds=i64(256), positions=i64(256)
    )
    check(drawn.tokens, (256,), torch.int64)
    check(drawn.logprob, (256,), torch.float32)
    check(drawn.cut_logprob, (256,), torch.float32)


def test_elementwise():
    x, residual, weight = (cuda(*s, grad=True) for s in ((ROWS, HIDDEN), (ROWS, HIDDEN), (HIDDEN,)))
    outputs = kernels.rms_norm(x, weight, 1e-6, residual)
    for y in outputs:
        check(y, (ROWS, HIDDEN), torch.bfloat16)
    check_gradients(outputs, x, residual, weight)
    q, k = cuda(ROWS, 12, 128, grad=True), cuda(ROWS, 2, 128, grad=True)
    outputs = kernels.rope(q, k, f32(ROWS, 64), f32(ROWS, 64))
    for y, heads in zip(outputs, (12, 2), strict=True):
        check(y, (ROWS, heads, 128), torch.bfloat16)
    check_gradients(outputs, q, k)
    gate, up = cuda(ROWS, MLP, grad=True), cuda(ROWS, MLP, grad=True)
    out = kernels.swiglu(gate, up)
    check(out, (ROWS, MLP), torch.bfloat16)
    check_gradients([out], gate, up)


def test_adamw_split():
    weights, lows, *floats = (
        [cuda(HIDDEN, MLP, dtype=dtype), cuda(HIDDEN, dtype=dtype)]
        for dtype in (torch.bfloat16, torch.int16, *(torch.float32,) * 3)
    )
    rate, skip = (torch.empty((), dtype=t, device="cuda") for t in (torch.float32, torch.bool))
    kernels.adamw_split_(
        *(weights, lows, *floats, [rate, rate]),
        **{"lr": rate, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        weight_decay=0.1,
        skip=skip,
    )
    high, low = kernels.split_bits(f32(ROWS, HIDDEN))
    check(high, (ROWS, HIDDEN), torch.bfloat16)
    check(low, (ROWS, HIDDEN), torch.int16)
    check(kernels.join_bits(high, low), (ROWS, HIDDEN), torch.float32)
