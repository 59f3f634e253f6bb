"""Sampling by an exponential race over counter-based noise; see torch_ref.sample_tokens.

One program a row: a pass for the largest logit, a pass that races and sums, the second mostly out
of the L2 cache. Each lane keeps its best score and sums, so a tile costs no reduction; ids rise
within a lane and the lowest of the best lanes wins, as the contract says of equals. Four entries
share a Philox call; the tile is laid out by calls, so that a thread has whole ones.

top-k and top-p keep all entries above a threshold and, of those that equal it, the first `ties` by
id. Both thresholds are the largest key at which a count, or a mass, still reaches its goal: found
bit by bit on the logits' order-preserving integer image, 32 passes over a row that stays in cache.
A sort would need the whole row in one place, or another kernel; nothing is sorted here. Masses are
float32 sums, the reference's are float64: they may differ on an entry whose mass before it meets
top_p to the last digit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_impl.common import row_offset, unit_columns

_BLOCK, _WARPS = 2048, 8
_NONE = tl.constexpr(0x7FFFFFFF)  # later than any id


def sample_tokens(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens int64 [B], logprob f32 [B], cut_logprob f32 [B]); see ops.sample_tokens."""
    rows, device = logits.shape[0], logits.device
    logits = unit_columns(logits)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    logprob, cut_logprob = (torch.empty(rows, dtype=torch.float32, device=device) for _ in range(2))
    sample_tokens_kernel[(rows,)](
        logits,
        logits.stride(0),
        seeds.contiguous(),
        positions.contiguous(),
        tokens,
        logprob,
        cut_logprob,
        vocab_size,
        top_k,
        temperature=temperature,
        TOP_K=0 < top_k < vocab_size,
        top_p=top_p,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return tokens, logprob, cut_logprob


@triton.jit
def _load(row, column, vocab_size):
    """float32 logits of a tile, −inf beyond the vocabulary, and 0 for −0, which equals it."""
    x = tl.load(row + column, mask=column < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(x == 0, 0.0, x)


@triton.jit
def _key(x):
    """uint32 in the order of the float32 x."""
    bits = x.to(tl.int32, bitcast=True)
    flipped = tl.where(bits < 0, ~bits, bits ^ -0x80000000)
    return flipped.to(tl.uint32, bitcast=True)


@triton.jit
def _weight(x, shift, temperature: tl.constexpr):
    return tl.exp(x / temperature - shift)


@triton.jit
def _exponential(bits):
    """Standard exponential variate from uint32 bits: −log(1 − u), a series where u is small."""
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    series = u + u * u * (0.5 + u * (1 / 3))
    return tl.where(u < 2.0**-10, series, -tl.log(1 - u))


@triton.jit
def _noise(seed, position, start, BLOCK: tl.constexpr):
    """Exponential variates of entries start ... start + BLOCK − 1."""
    call = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = call * 0
    word0, word1, word2, word3 = tl.philox(seed, call, zero + position.to(tl.uint32), zero, zero)
    even, odd = tl.join(word0, word2), tl.join(word1, word3)
    return _exponential(tl.reshape(tl.join(even, odd), (BLOCK,)))


@triton.jit
def _measure(
    row,
    vocab_size,
    floor,
    shift,
    MASS: tl.constexpr,
    temperature: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Number, or summed weight, of the entries whose key is at least `floor`."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = _load(row, column, vocab_size)
        value = 1.0
        if MASS:
            value = _weight(x, shift, temperature)
        total += tl.where((column < vocab_size) & (_key(x) >= floor), value, 0.0)
    return tl.sum(total, 0)


@triton.jit
def _threshold(
    row,
    vocab_size,
    goal,
    certain,
    shift,
    MASS: tl.constexpr,
    temperature: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key from which on the entries still reach `goal`; at least `certain`."""
    key = tl.full((), 0, tl.uint32)
    one = tl.full((), 1, tl.uint32)
    for bit in range(32):
        trial = key | (one << (31 - bit))
        reached = trial <= certain
        if not reached:
            mass = _measure(row, vocab_size, trial, shift, MASS, temperature, BLOCK)
            reached = mass >= goal
        key = tl.where(reached, trial, key)
    return key


@triton.jit
def _cut(
    row,
    vocab_size,
    top_k,
    shift,
    TOP_K: tl.constexpr,
    top_p: tl.constexpr,
    temperature: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(threshold, ties): keys above the threshold stay, and the first `ties` that equal it."""
    key = tl.full((), 0, tl.uint32)
    ties = tl.full((), vocab_size, tl.float32)
    if TOP_K:
        wanted = tl.full((), top_k, tl.float32)
        key = _threshold(row, vocab_size, wanted, key, shift, False, temperature, BLOCK)
        above = _measure(row, vocab_size, key + 1, shift, False, temperature, BLOCK)
        ties = wanted - above
    if top_p < 1.0:
        mass = _measure(row, vocab_size, key + 1, shift, True, temperature, BLOCK)
        if TOP_K:
            each = _weight(_from_key(key), shift, temperature)
            mass += ties * each
        goal = mass * top_p
        found = _threshold(row, vocab_size, goal, key, shift, True, temperature, BLOCK)
        above = _measure(row, vocab_size, found + 1, shift, True, temperature, BLOCK)
        each = _weight(_from_key(found), shift, temperature)
        needed = tl.maximum(tl.ceil(tl.div_rn(goal - above, each)), 1.0)
        ties = tl.where(found == key, tl.minimum(ties, needed), needed)
        key = found
    return key, ties


@triton.jit
def _from_key(key):
    """The float32 whose key this is."""
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -0x80000000, ~bits).to(tl.float32, bitcast=True)


@triton.jit
def sample_tokens_kernel(
    logits,
    stride,
    seeds,
    positions,
    tokens,
    logprob,
    cut_logprob,
    vocab_size,
    top_k,
    temperature: tl.constexpr,
    TOP_K: tl.constexpr,
    top_p: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0)
    row = logits + row_offset(index, stride)
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.zeros((BLOCK,), tl.int32)
    broken = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        x = _load(row, start + lane, vocab_size)
        broken = tl.where(x != x, 1, broken)
        better = x > best  # strict: the first of equals stays
        best_id = tl.where(better, start + lane, best_id)
        best = tl.where(better, x, best)
    peak = tl.max(best, 0)
    # NaN, +inf, or -inf everywhere is no distribution
    valid = (tl.max(broken, 0) == 0) & (tl.abs(peak) < float("inf"))
    if temperature == 0:
        token = tl.min(tl.where(best == peak, best_id, _NONE), 0)
        certain = tl.where(valid, 0.0, float("nan"))
        tl.store(tokens + index, tl.where(valid, token, -1))
        tl.store(logprob + index, certain)
        tl.store(cut_logprob + index, certain)
    else:
        shift = peak / temperature
        seed = tl.load(seeds + index)
        position = tl.load(positions + index) & 0xFFFFFFFF
        CUT: tl.constexpr = TOP_K or top_p < 1.0
        if CUT:
            key, ties = _cut(row, vocab_size, top_k, shift, TOP_K, top_p, temperature, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        cut_total = tl.zeros((BLOCK,), tl.float32)
        best = tl.full((BLOCK,), -1.0, tl.float32)
        best_id = tl.zeros((BLOCK,), tl.int32)
        seen = 0  # entries that equal the threshold in the tiles before
        for start in range(0, vocab_size, BLOCK):
            x = _load(row, start + lane, vocab_size)
            weight = _weight(x, shift, temperature)
            score = weight / _noise(seed, position, start, BLOCK)
            total += weight
            if CUT:
                equal = ((_key(x) == key) & (start + lane < vocab_size)).to(tl.int32)
                rank = seen + tl.cumsum(equal, 0)
                kept = (_key(x) > key) | ((equal > 0) & (rank.to(tl.float32) <= ties))
                cut_total += tl.where(kept, weight, 0.0)
                score = tl.where(kept, score, -1.0)
                seen += tl.sum(equal, 0)
            better = score > best
            best_id = tl.where(better, start + lane, best_id)
            best = tl.where(better, score, best)
        token = tl.min(tl.where(best == tl.max(best, 0), best_id, _NONE), 0)
        token = tl.where(valid, token, 0)
        z = tl.load(row + token).to(tl.float32) / temperature - shift
        full = z - tl.log(tl.sum(total, 0))
        cut = full
        if CUT:
            cut = z - tl.log(tl.sum(cut_total, 0))
        tl.store(tokens + index, tl.where(valid, token, -1))
        tl.store(logprob + index, tl.where(valid, full, float("nan")))
        tl.store(cut_logprob + index, tl.where(valid, cut, float("nan")))
