"""The row-wise Triton kernels in the interpreter, bfloat16 included (see sanitizer.py for how)."""

import pytest
import torch
from three_way import VOCABULARIES

import kernels
from kernels.triton_impl import adamw_split, logprob_rows, rms_norm
from tests.kernels.triton_rows import (
    adamw_inputs,
    check_adamw_split,
    check_logits,
    check_rms_norm,
    check_rope,
    check_swiglu,
    check_unmoved,
    draw,
)

DTYPES = [torch.float32, torch.bfloat16]
# One row, two, an odd handful: programs are rows, and each costs a millisecond here.
ROWS = [1, 2, 17]


def pick(rows, vocab, low=0):
    return torch.randint(low, vocab, (rows,), generator=torch.Generator().manual_seed(rows))


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 128 entries: 2,053 columns are then 16 tiles and a tail, 128 one whole tile."""
    monkeypatch.setattr(logprob_rows, "_BLOCK", 128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("rows", ROWS)
def test_logits(rows, vocab, dtype):
    check_logits(draw(rows, vocab, dtype=dtype, scale=3.0), pick(rows, vocab), 0.6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_logits_in_many_tiles(small_tiles, vocab, dtype):
    check_logits(draw(2, vocab, dtype=dtype, scale=3.0), pick(2, vocab), 0.6)


# The whole row shifted: a running max that started at 0 would underflow all of it below -104.
@pytest.mark.parametrize("shift", [100.0, -100.0, 1e4, -1e4])
def test_shift(small_tiles, shift):
    check_logits(draw(3, 257, scale=3.0) + shift, pick(3, 257), 1.0)


# The masked start covers part of a tile, the first tile, and all but the tail's one entry.
@pytest.mark.parametrize("masked", [16, 128, 256])
def test_first_tile_is_minus_infinity(small_tiles, masked):
    logits = draw(3, 257, scale=3.0)
    logits[:, :masked] = -torch.inf
    check_logits(logits, pick(3, 257, low=masked), 0.6)


def test_peak_in_the_tail(small_tiles):
    logits = draw(2, 257, scale=3.0)
    logits[:, 256] = 50.0
    check_logits(logits, torch.tensor([256, 3]), 0.6)


# Padded columns: none of a tile, one tile and a part, and their rows strided in a wider tensor.
@pytest.mark.parametrize("vocab", [127, 129, 200, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_vocabulary(small_tiles, vocab, dtype):
    whole = draw(3, 300, dtype=dtype, scale=3.0)
    check_logits(whole[:, :257], pick(3, vocab), 0.6, vocab=vocab)
    check_logits(whole.t().contiguous().t(), pick(3, vocab), 0.6, vocab=vocab)
    whole[1, 100] = torch.nan  # the padding's gradient is 0 even so
    targets, grad = pick(3, vocab), draw(3)
    _, _, stats = logprob_rows.logprob_from_logits(whole, targets, 0.6, vocab)
    d_logits = logprob_rows.logprob_from_logits_backward(
        grad, None, whole, targets, stats, 0.6, vocab
    )
    assert d_logits[1, :vocab].isnan().any() and d_logits[:, vocab:].eq(0).all()


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_output_only(which):
    grads = [None, None]
    grads[which] = draw(3, seed=1)
    check_logits(draw(3, 129), pick(3, 129), 0.6, grads)
    grads[which] = torch.tensor(0.37).expand(3)  # stride 0, as from a sum
    check_logits(draw(3, 129), pick(3, 129), 0.6, grads)
    grads[which] = draw(3, 2, seed=1)[:, 0]  # not dense
    check_logits(draw(3, 129), pick(3, 129), 0.6, grads)


def test_extremes():
    logprob, stats = logprob_rows.logprob_rows(torch.zeros(1, 257), torch.tensor([0]), 0.6)
    assert abs(logprob + torch.tensor(257.0).log()) < 1e-5
    assert abs(stats[:, 1] - stats[:, 2] - torch.tensor(257.0).log()) < 1e-5
    # A target without any probability: a finite gradient, not NaN.
    certain = torch.full((1, 257), -1e4)
    certain[0, 7] = 1e4
    logprob, stats = logprob_rows.logprob_rows(certain, torch.tensor([7]), 1.0)
    assert logprob.item() == 0 and (stats[:, 1] - stats[:, 2]).item() == 0
    one = torch.ones(1)
    logprob_rows.logprob_rows_backward(certain, torch.tensor([3]), stats, one, one, 1.0)
    assert certain.isfinite().all() and certain[0, 3] == 1 and certain[0, 7] == -1


def test_nan_reaches_its_own_row_only(small_tiles):
    logits, targets = draw(3, 257), pick(3, 257)
    logits[1, 100] = torch.nan
    logprob, stats = logprob_rows.logprob_rows(logits, targets, 0.6)
    assert logprob.isnan().tolist() == [False, True, False]
    assert stats[[0, 2]].isfinite().all()


def test_in_place_backward_keeps_to_its_rows():
    """Guard rows around a strided workspace, whose padding columns are guards as well."""
    work = torch.full((7, 140), torch.nan)
    logits = work[2:5, :129]
    logits.copy_(draw(3, 129))
    targets = pick(3, 129)
    _, stats = logprob_rows.logprob_rows(logits, targets, 0.6)
    logprob_rows.logprob_rows_backward(logits, targets, stats, torch.ones(3), None, 0.6)
    assert logits.isfinite().all()
    logits.fill_(torch.nan)
    assert work.isnan().all()


# Widths: one, around a tile, one row a program (1536), and the heads of Qwen3, 16 rows a program.
# With two tiles a program, 5 rows of 2,053 and 70 of 128 are three programs and their partials.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (17, 127), (70, 128), (2, 129), (2, 1536), (5, 2053)]
)
def test_rms_norm(monkeypatch, rows, columns, dtype):
    monkeypatch.setattr(rms_norm, "_TILES", 2)
    x, residual = draw(rows, columns, dtype=dtype), draw(rows, columns, dtype=dtype, seed=1)
    weight = draw(columns, dtype=dtype, seed=2)
    grads = [draw(rows, columns, dtype=dtype, seed=s) for s in (3, 4)]
    check_rms_norm(x, residual, weight, grads)
    check_rms_norm(x, None, weight, [grads[0], None])


def test_rms_norm_strides_and_extremes():
    x, weight = draw(5, 3 * 64).chunk(3, 1)[1], draw(64, seed=2)  # rows of a wider tensor
    grads = [torch.tensor(0.7).expand(5, 64), draw(64, 5, seed=3).t()]
    check_rms_norm(x, x, weight, grads)
    check_rms_norm(x, None, draw(128, seed=2)[::2], [grads[1], None])
    # Squares of 1e4 overflow float16, not float32; zeros must not divide by zero.
    rows = torch.stack((torch.full((128,), 1e4), torch.zeros(128), torch.full((128,), 1e-6)))
    check_rms_norm(rows, None, torch.ones(128), [draw(3, 128), None])


# Heads that are no power of two, one head, halves that are none, and the model's.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "size"), [(17, 6, 2, 16), (3, 1, 1, 6), (2, 12, 2, 128)]
)
def test_rope(tokens, heads, kv_heads, size, dtype):
    both = draw(tokens, heads + kv_heads, size, dtype=dtype)
    q, k = both[:, :heads], both[:, heads:]  # views of one projection
    angles = torch.arange(tokens)[:, None] * 0.3 ** torch.arange(size // 2)
    check_rope(q, k, angles.cos(), angles.sin())
    check_rope(q.transpose(0, 1).contiguous().transpose(0, 1), k, angles.cos(), angles.sin())


# A tile, one more, an odd width of three tiles; halves of one tensor; a stride-0 gradient.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 1024), (2, 1025), (17, 2053)])
def test_swiglu(rows, columns, dtype):
    gate, up = draw(rows, 2 * columns, dtype=dtype, scale=3.0).chunk(2, -1)
    check_swiglu(gate, up, draw(rows, columns, dtype=dtype, seed=1))
    check_swiglu(gate, up.contiguous(), torch.ones((), dtype=dtype).expand(rows, columns))


def test_swiglu_of_extremes():
    gate = torch.tensor([[-200.0, -90.0, 0.0, 90.0, 200.0]])
    check_swiglu(gate, torch.full((1, 5), 3.0), draw(1, 5))


# No entry, one, a tile of 1,024, one more, a handful of tiles; moments from either end of the lerp.
@pytest.mark.parametrize("beta1", [0.9, 0.2])
def test_adamw_split(beta1):
    check_adamw_split([0, 1, 1023, 1024, 1025, 4099], beta1=beta1)


def test_split_adamw_with_no_rate():
    check_unmoved()


def test_a_skipped_adamw_changes_nothing():
    (weight,), (m,), (v,), _ = adamw_inputs([1025])
    high, low = kernels.split_bits(weight)
    bad = torch.full_like(weight, torch.nan)
    tensors = (high, low, m, v)
    before = [x.clone() for x in tensors]
    factors = torch.tensor([1.0, torch.inf, 0.0])
    adamw_split.adamw_split_(high, low, bad, m, v, factors, torch.tensor(True), 0.9, 0.999, 1e-8)
    assert all(a.equal(b) for a, b in zip(tensors, before, strict=True))
