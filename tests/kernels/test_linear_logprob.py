"""linear_logprob against float64 and against the whole-logits form."""

import pytest
import torch
from three_way import ROWS, VOCABULARIES, assert_three_way, error
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels.ops.linear_logprob import _backward_op, _forward_op
from kernels.torch_ref import linear_logprob as ref

HIDDEN = 24
NAMES = ("logprob", "entropy", "d_hidden", "d_weight")


def problem(rows, vocab, dtype=torch.float32, scale=1.0, seed=0):
    """hidden, weight (entries that bfloat16 holds exactly), targets; the leaves require grad."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, HIDDEN, generator=generator).bfloat16() * scale
    weight = torch.randn(vocab, HIDDEN, generator=generator).bfloat16()
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def results(function, hidden, weight, grads):
    """logprob, entropy and both gradients under the given upstream gradients."""
    hidden = hidden.detach().requires_grad_()
    weight = weight.detach().requires_grad_()
    outputs = function(hidden, weight)
    upstream = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    torch.autograd.backward(outputs, upstream)
    return [o.detach() for o in outputs] + [hidden.grad, weight.grad]


def compare(hidden, weight, targets, temperature, atol, vocab_size=None, chunk_tokens=50):
    """Three-way comparison of outputs and gradients under random upstream gradients."""
    vocab_size = vocab_size or weight.shape[0]
    # not ones: a kernel that used the first row's gradient for all rows would pass with ones
    grads = torch.randn(2, targets.shape[0], generator=torch.Generator().manual_seed(1))

    def naive(h, w):
        return ref.naive(h, w, targets, temperature, vocab_size)

    def ours(h, w):
        return kernels.linear_logprob(
            h,
            w,
            targets,
            temperature=temperature,
            vocab_size=vocab_size,
            chunk_tokens=chunk_tokens,
        )

    truth = results(naive, hidden.double(), weight.double(), grads)
    plain = results(naive, hidden, weight, grads)
    got = results(ours, hidden, weight, grads)
    for name, a, b, c in zip(NAMES, got, plain, truth, strict=True):
        scale = max(1.0, float(c.abs().max())) if c.numel() else 1.0
        assert_three_way(a, b, c, atol * scale, name)
    assert got[0].dtype == got[1].dtype == torch.float32
    assert got[2].dtype == hidden.dtype and got[3].dtype == weight.dtype


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("rows", ROWS)
def test_float32(backend, rows, vocab):
    compare(*problem(rows, vocab), temperature=0.6, atol=2e-6)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("rows", [1, 17, 129])
def test_bfloat16(backend, rows, vocab):
    # Inputs are exact in bfloat16, so the error is that of the op. 1e-3: the logits are rounded to
    # 8 bits by the product in both, and where those happen to be exact plain torch has no error.
    compare(*problem(rows, vocab, torch.bfloat16), temperature=0.6, atol=1e-3)


# A shift must cancel. 1e4 is beyond exp's range, and float32 there has steps of 1e-3.
@pytest.mark.parametrize("shift", [100.0, -100.0, 1e4, -1e4])
def test_shifted_logits(backend, shift):
    hidden, weight, targets = problem(17, 257)
    hidden, weight = hidden.detach(), weight.detach()
    hidden[:, -1], weight[:, -1] = 1.0, shift
    compare(hidden, weight, targets, temperature=0.7, atol=2e-6)


def test_peaked_logits(backend):
    # One entry takes all the mass (entropy near 0), with a vocabulary that fills no tile.
    compare(*problem(17, 2053, scale=30.0), temperature=0.6, atol=2e-6)


# All in one chunk, one row a chunk, a last chunk of one row, chunks that divide the rows.
@pytest.mark.parametrize("chunk_tokens", [64, 1, 16, 11])
def test_chunks_agree(backend, chunk_tokens):
    compare(*problem(33, 129), temperature=1.0, atol=2e-6, chunk_tokens=chunk_tokens)


def test_padded_vocabulary_rows_have_no_part(backend):
    hidden, weight, targets = problem(17, 140)
    targets = targets % 129
    with torch.no_grad():
        weight[129:] = torch.nan  # exp(0) of a zero row would shift the log-prob; NaN ruins all
    got = results(
        lambda h, w: kernels.linear_logprob(h, w, targets, temperature=0.6, vocab_size=129),
        hidden,
        weight,
        torch.randn(2, 17),
    )
    assert got[3][129:].eq(0).all() and all(x.isfinite().all() for x in got)
    compare(hidden, weight[:129], targets, temperature=0.6, atol=2e-6)


@pytest.mark.parametrize("used", ["logprob", "entropy"])
@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_gradient_of_some_outputs_for_some_inputs(backend, used, wanted):
    hidden, weight, targets = problem(17, 129)
    leaf, other = (hidden, weight) if wanted == "hidden" else (weight, hidden)
    other.requires_grad_(False)
    grad = torch.randn(17)

    def of(function):
        output = function(hidden, weight, targets)[used == "entropy"]
        return torch.autograd.grad(output, leaf, grad)[0]

    got = of(lambda h, w, t: kernels.linear_logprob(h, w, t, temperature=0.6))
    want = of(lambda h, w, t: ref.naive(h, w, t, 0.6, 129))
    assert error(got, want) < 1e-5
    assert other.grad is None


def test_strided_upstream_gradients(backend):
    hidden, weight, targets = problem(17, 129)
    wide = torch.randn(17, 3)
    one = torch.randn(1)
    outputs = kernels.linear_logprob(hidden, weight, targets, temperature=0.6)
    grads = (one.expand(17), wide[:, 1])  # stride 0, and stride 3
    got = torch.autograd.grad(outputs, (hidden, weight), grads)
    kept = wide.clone()
    outputs = ref.naive(hidden, weight, targets, 0.6, 129)
    want = torch.autograd.grad(outputs, (hidden, weight), [g.clone() for g in grads])
    assert max(error(a, b) for a, b in zip(got, want, strict=True)) < 1e-5
    assert wide.equal(kept), "the backward pass wrote into the caller's gradient"


def test_no_rows(backend):
    hidden, weight, targets = problem(0, 129)
    logprob, entropy = kernels.linear_logprob(hidden, weight, targets, temperature=0.6)
    (logprob.sum() + entropy.sum()).backward()
    assert logprob.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, HIDDEN) and weight.grad.eq(0).all()


def test_same_call_same_bits(backend):
    # Old log-probs and the first update's must give a ratio of exactly 1.
    hidden, weight, targets = problem(129, 257)
    first = kernels.linear_logprob(hidden, weight, targets, temperature=0.6)
    again = kernels.linear_logprob(hidden.detach(), weight, targets, temperature=0.6)
    assert first[0].equal(again[0]) and first[1].equal(again[1])


def test_gradcheck():
    hidden, weight, targets = problem(5, 13, torch.float64)

    def function(h, w):
        return kernels.linear_logprob(
            h, w, targets % 11, temperature=0.7, vocab_size=11, chunk_tokens=2
        )

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_opcheck(backend):
    hidden, weight, targets = problem(17, 129)
    settings = (0.6, 127, 8, torch.float32)
    targets = targets % 127
    torch.library.opcheck(_forward_op, (hidden, weight, targets, *settings))
    hidden, weight = hidden.detach(), weight.detach()
    stats = _forward_op(hidden, weight, targets, *settings)[2]
    for grads, need in (((True, True), (True, True)), ((False, True), (False, True))):
        grads = [torch.randn(17) if g else None for g in grads]
        arguments = (*grads, hidden, weight, targets, stats, *settings, *need)
        torch.library.opcheck(_backward_op, arguments)


def test_compiles_as_one_graph(backend):
    hidden, weight, targets = problem(17, 129)
    grads = torch.randn(2, 17)

    def function(h, w):
        return kernels.linear_logprob(h * 2, w, targets, temperature=0.6)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, want = (results(f, hidden, weight, grads) for f in (compiled, function))
    assert max(error(a, b) for a, b in zip(got, want, strict=True)) < 1e-6


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients(backend):
    hidden, weight, targets = problem(17, 129)
    grads = torch.randn(2, 17)

    def function(h, w):
        return kernels.linear_logprob(h, w, targets, temperature=0.6)

    def autocast(h, w):
        with torch.autocast("cpu", torch.bfloat16):
            return function(h, w)

    got = results(autocast, hidden, weight, grads)
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(function, hidden, weight, grads)
    assert all(a.equal(b) for a, b in zip(got, inside, strict=True))
    low = results(function, hidden.bfloat16(), weight.bfloat16(), grads)
    assert got[0].equal(low[0]) and got[1].equal(low[1])
    assert got[2].dtype == got[3].dtype == torch.float32
    # The master weights' gradient is not rounded to bfloat16 on its way.
    assert not got[3].equal(got[3].bfloat16().float())
    assert got[3].bfloat16().equal(low[3])


def test_no_tensor_as_large_as_the_logits():
    rows, vocab, chunk = 128, 2053, 16
    hidden, weight, targets = (x.detach() for x in problem(rows, vocab))
    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in [out] if isinstance(x, torch.Tensor))
            return out

    settings = (0.6, vocab, chunk, torch.float32)
    with Record():
        stats = ref.forward(hidden, weight, targets, *settings)[2]
        grads = (torch.randn(rows), torch.randn(rows))
        ref.backward(*grads, hidden, weight, targets, stats, *settings, True, True)
    assert chunk * vocab <= max(sizes) <= weight.numel() < rows * vocab


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and positive, got 0.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"vocab_size": 130}, "vocab_size=130 does not fit 129"),
        ({"vocab_size": 100}, r"targets holds 128, expected values in \[0, 100\)"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
        ({"weight": torch.zeros(129, HIDDEN + 1)}, r"weight has shape \[129, 25\]"),
        ({"weight": torch.zeros(129, HIDDEN).double()}, "weight is torch.float64"),
        ({"targets": torch.zeros(17, dtype=torch.int32)}, "targets is torch.int32"),
        ({"targets": torch.full((17,), -1)}, "targets holds -1"),
    ],
)
def test_refusals(change, message):
    hidden, weight, _ = problem(17, 129)
    arguments = {"weight": weight, "targets": torch.full((17,), 128), "temperature": 1.0} | change
    with pytest.raises(ValueError, match=message):
        kernels.linear_logprob(hidden, **arguments)
