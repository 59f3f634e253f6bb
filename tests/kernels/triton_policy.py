"""Checks of the Triton kernels of rewards, loss, sampling and decoding, on any device.

Integers and sampled tokens must equal the reference's; the rest is judged by the three-way rule.
"""

import torch

from kernels.torch_ref import count_lengths as ref_lengths
from kernels.torch_ref import lcpo_advantage as ref_advantage
from kernels.torch_ref import policy_loss as ref_loss
from kernels.torch_ref import sample_tokens as ref_sampling
from kernels.triton_impl import (
    count_lengths,
    lcpo_advantage,
    paged_decode_attention,
    policy_loss,
    sample_tokens,
)
from tests.kernels.three_way import assert_three_way, error
from tests.kernels.triton_rows import draw, three_way, wide

EOS = 7
LOSS = {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.05, "entropy_coef": 0.01}


def check_lengths(lengths, pattern, device="cpu", seed=0):
    """Packed responses of these lengths from ten token ids, so that patterns and EOS are common."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 10, (sum(lengths),), generator=generator).to(device)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    for eos in (EOS, 12):  # 12 is nowhere: all are truncated
        got = count_lengths.count_lengths(ids, bounds, eos, pattern)
        want = ref_lengths.count_lengths(ids, bounds, eos, pattern)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and a.equal(b)


def check_advantage(samples, groups, kind, estimator, device="cpu", seed=0):
    """Ragged, interleaved groups; the last id of `groups` stays without members."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high):
        return torch.randint(low, high, (samples,), generator=generator).int().to(device)

    correct = integers(0, 2).float()
    arguments = (correct, integers(1, 4000), integers(100, 3600), integers(0, 3))
    group = integers(0, max(groups - 1, 1))
    arguments[3][group == 0] = 0  # a group of equal rewards: none of its members has a budget
    correct[group == 0] = 1.0
    settings = (kind, 0.0003, 0.0003, 0.5)
    got = lcpo_advantage.lcpo_advantage(*arguments, group, groups, *settings, estimator, 1e-6)
    same = ref_advantage.lcpo_advantage(*arguments, group, groups, *settings, estimator, 1e-6)
    wide = (correct.double(), *arguments[1:])
    reward = ref_advantage.rewards(*wide, *settings)
    truth = ref_advantage.advantages(reward, group, groups, estimator, 1e-6)
    for a, b, name in zip(got[:3], same[:3], ("correct", "length", "reward"), strict=True):
        assert error(a, b) <= 2.5e-7, name
    # Group statistics of rewards rounded to float32, as the reference's are.
    exact = ref_advantage.advantages(same[2].double(), group, groups, estimator, 1e-6)
    assert error(truth, exact) < 1e-2
    assert_three_way(got[3], same[3], exact, 4e-6, "advantage")
    assert got[3][group == 0].eq(0).all()


def loss_inputs(rows, sequences, device="cpu", seed=0):
    """(logprob, old, ref, entropy, advantage, seq_weight, seq_ids); some weights are 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size, scale=1.0):
        return (torch.randn(size, generator=generator) * scale).to(device)

    logprob = -normal(rows).abs() - 0.1
    old, ref = logprob + normal(rows, 0.3), logprob + normal(rows, 0.3)
    if rows > 8:  # equal, a tiny difference, and beyond each clamp, both ways
        steps = torch.tensor([0.0, 1e-4, 30.0, -30.0], device=device)
        old[:4], ref[2:6] = logprob[:4] + steps, logprob[2:6] - steps
    weight = normal(sequences).abs() / rows
    weight[::3] = 0.0
    seq_ids = torch.randint(0, sequences, (rows,), generator=generator).sort().values.int()
    inputs = (logprob, old, ref, normal(rows).abs(), normal(sequences), weight)
    return *inputs, seq_ids.to(device)


def check_loss(inputs, kl_grad, **changed):
    """Three-way in every output; dead tokens may hold NaN; twice the same bits."""
    logprob, old, ref, entropy, advantage, weight, seq_ids = inputs
    dead = (weight == 0)[seq_ids.long()]
    logprob, old = logprob.masked_fill(dead, torch.nan), old.masked_fill(dead, torch.nan)
    settings = LOSS | changed
    inputs = (logprob, old, ref, entropy, advantage, weight, seq_ids)
    order = (*[settings[k] for k in ("clip_low", "clip_high", "kl_coef")], kl_grad)
    order = (*order, settings["entropy_coef"])
    double = [x if x is None or x.dtype == torch.int32 else x.double() for x in inputs]
    got = policy_loss.policy_loss(*inputs, *order)
    same, truth = ref_loss.policy_loss(*inputs, *order), ref_loss.policy_loss(*double, *order)
    names = "loss d_logprob d_entropy"
    three_way(got[:3], same[:3], truth[:3], 1e-6, names)
    for i, (a, b, c) in enumerate(zip(*(x[3] for x in (got, same, truth)), strict=True)):
        assert_three_way(a, b, c, 1e-6 * max(1.0, float(c.abs())), f"statistic {i}")
    again = policy_loss.policy_loss(*inputs, *order)
    assert all(a.equal(b) for a, b in zip(got, again, strict=True))


def check_sampling(logits, temperature, top_k=0, top_p=1.0, vocab=None, seed=0):
    """The reference's tokens, and log-probabilities to the last digits."""
    rows, columns = logits.shape
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)
    positions = torch.arange(rows) + 2**32 - 1  # only the low 32 bits count, over the end
    numbers = (seeds.to(logits.device), positions.to(logits.device))
    shape = (temperature, top_k, top_p, *numbers, vocab or columns)
    tokens, logprob, cut_logprob = sample_tokens.sample_tokens(logits, *shape)
    want = ref_sampling.sample_tokens(logits.float(), *shape)
    assert tokens.dtype == torch.int64 and tokens.equal(want[0])
    valid = tokens >= 0
    for a, b in ((logprob, want[1]), (cut_logprob, want[2])):
        assert error(a[valid], b[valid]) < 5e-6 and a[~valid].isnan().all()
    return tokens


def plain_decode(q, k_cache, v_cache, block_table, cache_seqlens, scale):
    """One sequence after the other; float32 scores at least, as any library has them."""
    page, groups = k_cache.shape[1], q.shape[1] // k_cache.shape[2]
    out = torch.zeros_like(q)
    for b, length in enumerate(cache_seqlens.tolist()):
        pages = block_table[b, : -(-length // page)].long()
        k, v = (
            x[pages].flatten(0, 1)[:length].repeat_interleave(groups, 1) for x in (k_cache, v_cache)
        )
        scores = torch.einsum("hd,nhd->hn", q[b].to(wide(q.dtype)), k.to(wide(q.dtype))) * scale
        out[b] = torch.einsum("hn,nhd->hd", scores.softmax(-1).to(q.dtype), v)
    return out


def check_decoding(lengths, heads, kv_heads, size, page, dtype=torch.float32, device="cpu"):
    """Pages in no order; what lies beyond a sequence, and unused pages, hold NaN."""
    batch, used = len(lengths), [-(-n // page) for n in lengths]
    pages = sum(used) + 2
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(3)).int()
    block_table = torch.full((batch, max(*used, 1) + 1), -1, dtype=torch.int32)
    shape = (pages, page, kv_heads, size)
    k_cache, v_cache = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
    taken = 0
    for b, n in enumerate(lengths):
        own = order[taken : taken + used[b]]
        block_table[b, : used[b]], taken = own, taken + used[b]
        for i, cache in enumerate((k_cache, v_cache)):
            for j, p in enumerate(own.tolist()):
                count = min(page, n - j * page)
                cache[p, :count] = draw(count, kv_heads, size, seed=100 * b + 10 * j + i).to(dtype)
    q = draw(batch, heads, size, dtype=dtype, device=device, seed=9)
    tables = (block_table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device))
    arguments = (q, k_cache.to(device), v_cache.to(device), *tables, size**-0.5)
    got = paged_decode_attention.paged_decode_attention(*arguments)
    assert got.dtype == dtype
    truth = plain_decode(*(x.double() for x in arguments[:3]), *arguments[3:])
    assert_three_way(got, plain_decode(*arguments), truth, 1e-6, "out")
