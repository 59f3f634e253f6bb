"""linear_policy_loss against autograd in float64, and against the two ops it does the work of."""

import pytest
import torch
from test_policy_loss import SETTINGS, formula
from three_way import assert_three_way, error

import kernels
from kernels.ops.linear_policy_loss import _op
from kernels.torch_ref import linear_logprob as ref

HIDDEN, TEMPERATURE, CHUNK = 24, 0.6, 50
NAMES = ("loss", "d_hidden", "d_weight")


def problem(rows, vocab, dtype=torch.float32, sequences=3, seed=0, scale=1.0):
    """All tensors of the op; weights and states are exact in bfloat16, about half the tokens clip.

    `old` and `reference` are near the policy's own log-probs, as they are in training.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    hidden = normal(rows, HIDDEN).bfloat16() * scale
    weight = normal(vocab, HIDDEN).bfloat16()
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    seq_ids = torch.randint(0, sequences, (rows,), generator=generator).int()
    logprob, _ = ref.naive(hidden.double(), weight.double(), targets, TEMPERATURE, vocab)
    old, reference = (logprob.float() + 0.3 * normal(rows) for _ in range(2))
    rest = (old, reference, normal(sequences), torch.rand(sequences, generator=generator) + 0.1)
    return (hidden.to(dtype), weight.to(dtype), targets, *rest, seq_ids)


def ours(*tensors, **settings):
    settings = {"chunk_tokens": CHUNK} | settings
    return kernels.linear_policy_loss(*tensors, temperature=TEMPERATURE, **settings)[0]


def naive(hidden, weight, targets, old, reference, *rest, vocab_size=None, **settings):
    """The definition, for autograd: whole logits, log-probs, the loss formula."""
    outputs = ref.naive(hidden, weight, targets, TEMPERATURE, vocab_size or len(weight))
    return formula(outputs[0], old, reference, outputs[1], *rest, **settings)


def run(function, tensors, settings=SETTINGS, upstream=1.7):
    """(loss, d hidden, d weight) with an upstream gradient that is not 1."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in tensors[:2])
    loss = function(hidden, weight, *tensors[2:], **settings)
    loss.backward(torch.tensor(upstream, dtype=loss.dtype))
    return loss.detach(), hidden.grad, weight.grad


def double(tensors):
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


def compare(tensors, settings, atol):
    got, plain, truth = (
        run(ours, tensors, settings),
        run(naive, tensors, settings),
        run(naive, double(tensors), settings),
    )
    for name, a, b, c in zip(NAMES, got, plain, truth, strict=True):
        assert_three_way(a, b, c, atol * max(1.0, float(c.abs().max())), name)
    assert got[0].dtype == torch.float32
    assert [x.dtype for x in got[1:]] == [x.dtype for x in tensors[:2]]


# Rows and columns as in three_way.py, thinned: its parts have the full grid in their own tests.
@pytest.mark.parametrize("vocab", [127, 128, 129, 257, 2053])
@pytest.mark.parametrize("rows", [1, 17, 129])
@pytest.mark.parametrize("kl_grad", ["k3", "corrected"])
def test_float32(backend, rows, vocab, kl_grad):
    compare(problem(rows, vocab), SETTINGS | {"kl_grad": kl_grad}, atol=2e-6)


@pytest.mark.parametrize("vocab", [129, 2053])
@pytest.mark.parametrize("rows", [1, 17, 129])
def test_bfloat16(backend, rows, vocab):
    # 2e-3: logits rounded to 8 bits move the log-prob, and its ratio may cross the clip there
    tensors = list(problem(rows, vocab, torch.bfloat16))
    tensors[3] = tensors[3] + 0.05 * tensors[3].sign()
    compare(tensors, SETTINGS | {"clip_low": 0.9, "clip_high": 9.0}, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# 1025 rows and 2053 columns: three blocks of rows on the CPU, three tiles each, the last ones cut
@pytest.mark.parametrize(("rows", "vocab"), [(129, 257), (1025, 2053)])
@pytest.mark.parametrize("chunk_tokens", [50, 4096])
def test_the_ratio_to_linear_logprob_is_exactly_one(backend, rows, vocab, chunk_tokens, dtype):
    hidden, weight, targets, _, _, *rest = problem(rows, vocab, dtype)
    settings = {"temperature": TEMPERATURE, "chunk_tokens": chunk_tokens}
    old, entropy = kernels.linear_logprob(hidden, weight, targets, **settings)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    found = []
    for before in (old, None):
        loss, stats, logprob = kernels.linear_policy_loss(
            *leaves, targets, before, None, *rest, **settings, **SETTINGS | {"kl_coef": 0.0}
        )
        found.append((loss, *stats, *torch.autograd.grad(loss, leaves)))
        assert logprob.equal(old) and not logprob.requires_grad
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
    assert stats.ratio_max_dev == 0 and stats.old_kl_sum == 0 and stats.clip_count == 0
    assert stats.tokens == rows
    assert float(stats.entropy_sum) == pytest.approx(float(entropy.sum()), rel=1e-5)


def test_statistics_are_those_of_policy_loss(backend):
    hidden, weight, targets, *rest = problem(129, 257)
    settings = {"temperature": TEMPERATURE, "chunk_tokens": CHUNK}
    logprob, entropy = kernels.linear_logprob(hidden, weight, targets, **settings)
    loss, want = kernels.policy_loss(logprob, *rest[:2], entropy, *rest[2:], **SETTINGS)
    got_loss, got, _ = kernels.linear_policy_loss(
        hidden, weight, targets, *rest, **settings, **SETTINGS
    )
    torch.testing.assert_close(got_loss, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert not got.kl_sum.requires_grad


# One block, one row a block, a last block of one row, blocks that divide the rows.
@pytest.mark.parametrize("chunk_tokens", [64, 1, 16, 11])
def test_blocks_agree(backend, chunk_tokens):
    compare(problem(33, 129), SETTINGS | {"chunk_tokens": chunk_tokens}, atol=2e-6)


@pytest.mark.parametrize("shift", [100.0, -100.0, 1e4, -1e4])
def test_shifted_logits(backend, shift):
    tensors = problem(17, 2053)
    tensors[0][:, -1], tensors[1][:, -1] = 1.0, shift
    logprob, _ = ref.naive(*double(tensors[:3]), TEMPERATURE, 2053)
    near = logprob.float() + 0.3 * torch.randn(17, generator=torch.Generator().manual_seed(3))
    compare((*tensors[:3], near, near + 0.1, *tensors[5:]), SETTINGS, atol=2e-6)


@pytest.mark.parametrize("wanted", ["hidden", "weight", "neither"])
def test_gradient_for_some_inputs(backend, wanted):
    tensors = problem(17, 129)
    loss, *want = run(ours, tensors)
    leaves = [tensors[0].clone(), tensors[1].clone()]
    if wanted == "neither":
        assert ours(*leaves, *tensors[2:], **SETTINGS).equal(loss)
        return
    index = ("hidden", "weight").index(wanted)
    leaves[index].requires_grad_()
    ours(*leaves, *tensors[2:], **SETTINGS).backward(torch.tensor(1.7))
    assert error(leaves[index].grad, want[index]) < 1e-6
    assert leaves[1 - index].grad is None


def test_a_graph_may_be_used_twice(backend):
    hidden, weight, *rest = problem(17, 129)
    hidden.requires_grad_(), weight.requires_grad_()
    loss = ours(hidden, weight, *rest, **SETTINGS)
    loss.backward(retain_graph=True)
    once = [x.grad.clone() for x in (hidden, weight)]
    loss.backward(retain_graph=True)  # adds to .grad in place: that must not be what was saved
    (3 * loss).backward()
    for leaf, first in zip((hidden, weight), once, strict=True):
        torch.testing.assert_close(leaf.grad, 5 * first)


def test_padded_vocabulary_rows_have_no_part(backend):
    hidden, weight, *rest = problem(17, 129)
    padded = torch.cat([weight, torch.full((11, HIDDEN), torch.nan)])
    settings = SETTINGS | {"vocab_size": 129}
    got, want = run(ours, (hidden, padded, *rest), settings), run(ours, (hidden, weight, *rest))
    assert got[0].equal(want[0]) and got[1].equal(want[1]) and got[2][:129].equal(want[2])
    assert got[2][129:].eq(0).all()


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_sequences_without_weight_add_nothing(backend, bad):
    tensors = [x.clone() for x in problem(17, 129)]
    tensors[6][1] = 0.0
    dead = tensors[7] == 1
    want = run(ours, tensors)
    tensors[3][dead], tensors[4][dead], tensors[5][1] = bad, bad, bad
    got = run(ours, tensors)
    assert dead.any() and all(a.equal(b) for a, b in zip(got, want, strict=True))
    assert got[1][dead].eq(0).all()


def test_all_sequences_without_weight(backend):
    tensors = [x.clone() for x in problem(17, 129)]
    tensors[6].zero_()
    assert all(x.eq(0).all() for x in run(ours, tensors))


def test_no_rows(backend):
    loss, d_hidden, d_weight = run(ours, problem(0, 129))
    assert loss == 0 and d_hidden.shape == (0, HIDDEN) and d_weight.eq(0).all()


def test_without_kl_and_entropy_terms(backend):
    hidden, weight, targets, old, _, *rest = problem(33, 129)
    settings = SETTINGS | {"kl_coef": 0.0, "entropy_coef": 0.0}
    compare((hidden, weight, targets, old, None, *rest), settings, atol=2e-6)


def test_autocast_keeps_float32_gradients(backend):
    tensors = problem(33, 257)

    def autocast(*arguments, **settings):
        with torch.autocast("cpu", torch.bfloat16):
            return ours(*arguments, **settings)

    # 2: gradients in bfloat16 are scaled after they were rounded, which a power of two hides
    got = run(autocast, tensors, upstream=2.0)
    low = (tensors[0].bfloat16(), tensors[1].bfloat16(), *tensors[2:])
    low = run(ours, low, upstream=2.0)
    assert got[0].equal(low[0]) and got[1].dtype == got[2].dtype == torch.float32
    assert not got[2].equal(got[2].bfloat16().float())
    assert got[1].bfloat16().equal(low[1]) and got[2].bfloat16().equal(low[2])


def test_the_gradient_of_a_master_is_not_rounded(backend):
    hidden, weight, *rest = problem(33, 257, torch.bfloat16)
    master = weight.float().requires_grad_()

    def loss(hidden, weight, **settings):
        return ours(hidden, weight, *rest, **SETTINGS, **settings)

    plain = weight.clone().requires_grad_()
    loss(hidden, plain).backward()
    hidden.requires_grad_()
    loss(hidden, weight.requires_grad_(), master=master).backward()
    assert weight.grad is None and hidden.grad is not None
    assert master.grad.bfloat16().equal(plain.grad)
    assert not master.grad.equal(plain.grad.float())


def test_opcheck(backend):
    hidden, weight, *rest = problem(17, 129)
    settings = (TEMPERATURE, 129, 8, torch.float32, 0.2, 0.2, 0.1, "k3", 0.01)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())
    plain = (hidden.detach(), weight.detach())
    torch.library.opcheck(_op, (*leaves, None, *rest, *settings, True, True))
    torch.library.opcheck(_op, (*plain, weight.clone(), *rest, *settings, True, True))
    torch.library.opcheck(_op, (*plain, None, *rest, *settings, False, False))


def test_compiles_as_one_graph(backend):
    tensors = problem(17, 129)

    def function(hidden, *arguments, **settings):
        return ours(hidden * 2, *arguments, **settings)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, want = (run(f, tensors) for f in (compiled, function))
    assert max(error(a, b) for a, b in zip(got, want, strict=True)) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and positive, got 0.0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
        ({"weight": torch.zeros(129, HIDDEN + 1)}, r"weight has shape \[129, 25\]"),
        ({"targets": torch.full((17,), 129)}, "targets holds 129"),
        ({"old": torch.zeros(16)}, r"old has shape \[16\], expected \[17\]"),
        ({"ref": None}, r"kl_coef=0.1 needs reference log-probs"),
        ({"kl_grad": "k2"}, "unknown kl_grad 'k2'"),
        ({"seq_ids": torch.full((17,), 3, dtype=torch.int32)}, "seq_ids holds 3"),
        ({"hidden": torch.zeros(17, HIDDEN).double()}, "torch.float64"),
    ],
)
def test_refusals(change, message):
    names = ["hidden", "weight", "targets", "old", "ref", "advantage", "seq_weight", "seq_ids"]
    arguments = dict(zip(names, problem(17, 129), strict=True)) | {"temperature": 1.0} | SETTINGS
    with pytest.raises(ValueError, match=message):
        kernels.linear_policy_loss(**arguments | change)
