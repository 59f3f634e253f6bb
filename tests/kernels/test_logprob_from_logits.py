"""logprob_from_logits on both backends; test_logprob_rows.py has what rows may hold."""

import pytest
import torch
from three_way import VOCABULARIES, compare, error, run

import kernels
from kernels.ops.logprob_from_logits import _backward_op, _forward_op
from kernels.torch_ref.linear_logprob import definition

F32, BF16 = torch.float32, torch.bfloat16
NAMES = "logprob entropy d_logits"


def draw(rows, columns, dtype=F32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * 3).to(dtype)


def functions(targets, temperature=0.6, vocab_size=None):
    """(the op, its definition)."""

    def op(logits):
        settings = {"temperature": temperature, "vocab_size": vocab_size}
        return kernels.logprob_from_logits(logits, targets, **settings)

    return op, lambda x: definition(x, targets, temperature, vocab_size or x.shape[1])


def targets_of(rows, vocab):
    return torch.arange(rows) * 7 % vocab


def check(logits, targets, upstream, vocab_size=None):
    return compare(*functions(targets, 0.6, vocab_size), (logits,), upstream, 2e-6, NAMES)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_vocabularies(backend, vocab, dtype):
    check(draw(17, vocab, dtype), targets_of(17, vocab), draw(2, 17, seed=1))


# Padding of one column, and of more than a register; it holds what must not count.
@pytest.mark.parametrize("padding", [1, 40])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_padded_vocabulary(backend, padding, dtype):
    logits = draw(17, 129 + padding, dtype)
    logits[:, 129:] = torch.inf
    got = check(logits, targets_of(17, 129), draw(2, 17, seed=1), vocab_size=129)
    assert got[2][:, 129:].eq(0).all()


def test_strides(backend):
    wide, targets = draw(34, 300), targets_of(17, 129)
    flat, gaps = torch.ones(()).expand(17), draw(17, 2, seed=1)[:, 0]
    for logits in (wide[::2, 5:134], wide[:17, ::2][:, :129], draw(129, 17).t()):
        check(logits, targets, (flat, gaps))
    check(draw(1, 129).expand(17, 129), targets, (gaps, flat))


def test_gradient_of_one_output_only(backend):
    for upstream in ((draw(1, 17)[0], None), (None, draw(1, 17)[0])):
        check(draw(17, 129), targets_of(17, 129), upstream)


def test_minus_infinity_has_no_probability(backend):
    logits = draw(3, 129)
    logits[:, 5:50] = -torch.inf
    got = check(logits, torch.tensor([0, 50, 128]), draw(2, 3, seed=1))
    assert got[2][:, 5:50].eq(0).all()


def test_no_rows(backend):
    op, _ = functions(torch.zeros(0, dtype=torch.int64))
    logprob, entropy, d_logits = run(op, (torch.zeros(0, 5),), (torch.zeros(0),) * 2)
    assert logprob.shape == entropy.shape == (0,) and d_logits.shape == (0, 5)


def test_float16_runs_in_float32():
    logits, targets = draw(17, 129), targets_of(17, 129)
    logprob, _ = kernels.logprob_from_logits(logits.half(), targets, temperature=1.0)
    want, _ = definition(logits.half().double(), targets, 1.0, 129)
    assert logprob.dtype == F32 and error(logprob, want) < 1e-5


def test_gradcheck():
    logits = draw(5, 13).double().requires_grad_()
    assert torch.autograd.gradcheck(functions(torch.tensor([0, 10, 3, 3, 7]), 0.6, 11)[0], logits)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_opcheck(backend, dtype):
    logits, targets = draw(3, 13, dtype), targets_of(3, 11)
    torch.library.opcheck(_forward_op.op, (logits.requires_grad_(), targets, 0.6, 11))
    logits = logits.detach()
    logprob, _, stats = _forward_op.op(logits, targets, 0.6, 11)
    for grads in ((logprob, logprob), (None, logprob)):
        torch.library.opcheck(_backward_op.op, (*grads, logits, targets, stats, 0.6, 11))


def test_compiles_as_one_graph(backend):
    op, _ = functions(targets_of(17, 129))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    arguments = (draw(17, 129),), draw(2, 17, seed=1)
    got, want = (run(function, *arguments) for function in (compiled, op))
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_refusals():
    logits, targets = draw(3, 8), targets_of(3, 8)

    def call(logits=logits, targets=targets, temperature=1.0, vocab_size=None):
        settings = {"temperature": temperature, "vocab_size": vocab_size}
        kernels.logprob_from_logits(logits, targets, **settings)

    with pytest.raises(ValueError, match=r"targets holds 7, expected values in \[0, 5\)"):
        call(vocab_size=5)
    with pytest.raises(ValueError, match=r"targets has shape \[3\], expected \[2\]"):
        call(logits=logits[:2])
    with pytest.raises(ValueError, match="temperature must be finite and positive, got 0"):
        call(temperature=0.0)
    with pytest.raises(ValueError, match="vocab_size=9 does not fit 8 columns"):
        call(vocab_size=9)
