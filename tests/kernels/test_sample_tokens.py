"""sample_tokens: its noise bit for bit, frequencies by a chi-square test, cuts by a loop."""

import pytest
import torch
from three_way import VOCABULARIES, error

import kernels
from kernels.cpp_impl.sample_tokens import _sample_tokens
from kernels.ops.sample_tokens import _op
from kernels.torch_ref.linear_logprob import definition
from kernels.torch_ref.philox import philox, vocabulary_bits


def rows(count, vocab, scale=3.0, seed=0):
    """Logits [count, vocab] with their seeds and positions."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, vocab, generator=generator) * scale
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    return logits, seeds, torch.arange(count)


def sample(logits, seeds, positions, temperature=0.7, **cuts):
    return kernels.sample_tokens(
        logits, temperature=temperature, seeds=seeds, positions=positions, **cuts
    )


# Random123's kat_vectors for philox4x32-10: counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    got = philox(torch.tensor(key), tuple(map(torch.tensor, counter)))
    assert tuple(map(int, got)) == words


def test_layout_of_the_noise():
    bits = vocabulary_bits(torch.tensor([5, -7]), torch.tensor([3, 2**32 + 1]), 11)
    assert bits.shape == (2, 11) and bits.min() >= 0 and bits.max() < 2**32
    zero = torch.tensor(0)
    third = philox(torch.tensor(-7), (torch.tensor(2), torch.tensor(1), zero, zero))
    assert bits[1, 8:].tolist() == [int(w) for w in third[:3]]  # entries 8, 9, 10: call 2


def check_frequencies(tokens, p):
    """Chi-square of the draws against p: 0.9999 quantile, by Wilson and Hilferty's cube root."""
    count = len(tokens)
    seen = torch.bincount(tokens, minlength=len(p)).double()
    expected = p.double() * count
    assert seen[expected == 0].sum() == 0
    live = expected > 0
    assert expected[live].min() > 5, "too few draws for the test"
    statistic = float(((seen - expected)[live] ** 2 / expected[live]).sum())
    k = int(live.sum()) - 1
    assert statistic < k * (1 - 2 / (9 * k) + 3.719 * (2 / (9 * k)) ** 0.5) ** 3, statistic


# 13 entries: three Philox calls and one entry of a fourth, of probabilities 0.0005 to 0.5.
@pytest.mark.parametrize("cuts", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 6, "top_p": 0.9}])
@pytest.mark.parametrize("vary", ["seeds", "positions"])
def test_frequencies(backend, vary, cuts):
    count = 30_000
    logits = torch.linspace(0, 4, 13).sin().mul(4).expand(count, 13)
    numbers, same = torch.arange(count), torch.full((count,), 17)
    seeds, positions = (numbers, same) if vary == "seeds" else (same, numbers)
    got = sample(logits, seeds, positions, temperature=1.2, **cuts)
    p = (logits[0] / 1.2).softmax(0)
    kept = torch.tensor([j in oracle_kept(logits[0], 1.2, **cuts) for j in range(13)])
    check_frequencies(got.tokens, torch.where(kept, p, 0.0) / p[kept].sum())


def oracle_kept(logits, temperature, top_k=0, top_p=1.0):
    """Ids that survive, by a loop: rank, cut to k, then the shortest prefix that reaches p."""
    p = (logits.double() / temperature).softmax(0).tolist()
    ranked = sorted(range(len(p)), key=lambda j: (-float(logits[j]), j))
    ranked = ranked[:top_k] if top_k else ranked
    if top_p == 1:
        return set(ranked)
    total, before, kept = sum(p[j] for j in ranked), 0.0, set()
    for j in ranked:
        if kept and before >= top_p * total:
            break
        kept.add(j)
        before += p[j]
    return kept


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize(
    "cuts", [{}, {"top_k": 1}, {"top_k": 20}, {"top_p": 0.3}, {"top_k": 50, "top_p": 0.95}]
)
def test_log_probabilities(backend, vocab, cuts):
    logits, seeds, positions = rows(17, vocab)
    got = sample(logits, seeds, positions, **cuts)
    assert got.tokens.dtype == torch.int64
    assert got.logprob.dtype == got.cut_logprob.dtype == torch.float32
    full, _ = definition(logits.double(), got.tokens, 0.7, logits.shape[1])
    assert error(got.logprob, full) < 5e-6
    for row in range(17):
        kept = oracle_kept(logits[row], 0.7, **cuts)
        token = int(got.tokens[row])
        assert token in kept
        z = logits[row].double() / 0.7
        want = z[token] - z[sorted(kept)].logsumexp(0)
        assert got.cut_logprob[row].item() == pytest.approx(float(want), abs=5e-6)
    if not cuts:
        assert got.cut_logprob.equal(got.logprob)


@pytest.mark.parametrize("cuts", [{}, {"top_k": 20}, {"top_p": 0.9}, {"top_k": 30, "top_p": 0.9}])
def test_backends_draw_the_same_tokens(cpp, cuts):
    logits, seeds, positions = rows(512, 401)
    found = []
    for name in ("torch", "cpp"):
        with kernels.override(f"sample_tokens={name}"):
            found.append(sample(logits, seeds, positions, **cuts))
    assert found[0].tokens.equal(found[1].tokens)
    assert error(found[0].logprob, found[1].logprob) < 5e-6
    assert error(found[0].cut_logprob, found[1].cut_logprob) < 5e-6


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.9}])
def test_draw_does_not_depend_on_the_batch(backend, cuts):
    logits, seeds, positions = rows(33, 257)
    whole = sample(logits, seeds, positions, **cuts)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    shuffled = sample(logits[order], seeds[order], positions[order], **cuts)
    assert shuffled.tokens.equal(whole.tokens[order])
    for row in (0, 32):
        alone = sample(*(x[row : row + 1] for x in (logits, seeds, positions)), **cuts)
        assert alone.tokens == whole.tokens[row]
        assert error(alone.logprob, whole.logprob[row]) < 1e-6


def test_draw_depends_on_seed_and_position(backend):
    logits = torch.zeros(64, 257)
    same, numbers = torch.zeros(64, dtype=torch.int64), torch.arange(64)
    assert sample(logits, same, same).tokens.unique().numel() == 1
    for seeds, positions in ((numbers, same), (same, numbers), (numbers << 32, same)):
        assert sample(logits, seeds, positions).tokens.unique().numel() > 40


def test_greedy_takes_the_first_of_equals(backend):
    logits, seeds, positions = rows(5, 129)
    logits[0, [100, 17, 128]] = 50.0
    logits[1] = 0.0
    logits[2, :128] = -torch.inf
    got = sample(logits, seeds, positions, temperature=0.0)
    assert got.tokens[:3].tolist() == [17, 0, 128]
    assert got.tokens[3:].equal(logits[3:].argmax(1))
    assert got.logprob.eq(0).all() and got.cut_logprob.eq(0).all()


def test_low_temperature_approaches_greedy(backend):
    logits, seeds, positions = rows(65, 257)
    got = sample(logits, seeds, positions, temperature=1e-4)
    assert got.tokens.equal(logits.argmax(1)) and got.logprob.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 20, "top_p": 0.9}])
def test_rows_that_are_no_distribution_are_reported(backend, temperature, cuts):
    logits, seeds, positions = rows(5, 129)
    logits[0, 64], logits[1, 128], logits[2], logits[3, 3] = (
        torch.nan,
        torch.nan,
        -torch.inf,
        torch.inf,
    )
    got = sample(logits, seeds, positions, temperature=temperature, **cuts)
    assert got.tokens[:4].tolist() == [-1] * 4 and got.tokens[4] >= 0
    for x in (got.logprob, got.cut_logprob):
        assert x[:4].isnan().all() and x[4].isfinite()


@pytest.mark.parametrize("cuts", [{}, {"top_k": 200}, {"top_p": 0.99}])
def test_ids_beyond_the_tokenizer_never_come_out(backend, cuts):
    logits, seeds, positions = rows(257, 140)
    logits[:, 129:] = 100.0
    logits[:, -1] = torch.nan
    got = sample(logits, seeds, positions, vocab_size=129, **cuts)
    assert got.tokens.min() >= 0 and got.tokens.max() < 129
    want = sample(logits[:, :129].contiguous(), seeds, positions, **cuts)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


# A running max from 0 would underflow all of a row below -104, and exp overflows above 88.
@pytest.mark.parametrize("shift", [100.0, -100.0, 1e4, -1e4])
def test_a_shift_changes_nothing(backend, shift):
    logits, seeds, positions = rows(33, 257)
    logits = logits.mul(64).round() / 64  # so that the shift is exact
    base = sample(logits, seeds, positions, temperature=1.0)
    moved = sample(logits + shift, seeds, positions, temperature=1.0)
    assert moved.tokens.equal(base.tokens) and error(moved.logprob, base.logprob) < 1e-6


def test_only_one_entry_is_possible(backend):
    logits = torch.full((129, 129), -torch.inf)
    logits.fill_diagonal_(3.0)
    got = sample(logits, torch.arange(129), torch.arange(129))
    assert got.tokens.equal(torch.arange(129)) and got.logprob.eq(0).all()


def test_bfloat16_and_strided_logits(backend):
    logits, seeds, positions = rows(17, 129)
    low = logits.bfloat16()
    assert sample(low, seeds, positions).tokens.equal(sample(low.float(), seeds, positions).tokens)
    wide = torch.randn(129, 40)
    wide[:, ::2][:, :17] = logits.t()
    strided = wide[:, ::2][:, :17].t()
    assert strided.stride(1) != 1
    assert sample(strided, seeds, positions).tokens.equal(sample(logits, seeds, positions).tokens)


def test_no_rows(backend):
    got = sample(*rows(0, 129))
    assert [x.shape for x in got] == [(0,)] * 3


def test_cpp_fills_all_rows_and_only_those_for_any_threads(cpp):
    logits, seeds, positions = rows(129, 257)
    found = []
    for threads in (1, 3):
        tokens = torch.full((131,), -9)
        values = torch.full((2, 131), torch.nan)
        _sample_tokens(
            *(logits.data_ptr(), False, 129, 257, 257, 0.7, 0, 1.0),
            *(seeds.data_ptr(), positions.data_ptr(), tokens[1:].data_ptr()),
            *(values[0, 1:].data_ptr(), values[1, 1:].data_ptr(), threads),
        )
        assert (tokens == -9).nonzero().squeeze(1).tolist() == [0, 130]
        assert values.isnan().nonzero()[:, 1].tolist() == [0, 130, 0, 130]
        found.append((tokens, values[:, 1:-1].clone()))
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_opcheck(backend):
    logits, seeds, positions = rows(5, 129)
    torch.library.opcheck(_op, (logits, 0.7, 20, 0.9, seeds, positions, 127))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.5}, "temperature must be finite and positive, got -0.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": float("nan")}, "got nan"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"vocab_size": 0}, "vocab_size=0 does not fit 129"),
        ({"seeds": torch.zeros(4, dtype=torch.int64)}, r"seeds has shape \[4\], expected \[5\]"),
        ({"positions": torch.zeros(5)}, r"positions is torch\.float32"),
    ],
)
def test_refusals(change, message):
    logits, seeds, positions = rows(5, 129)
    arguments = {"temperature": 1.0, "seeds": seeds, "positions": positions} | change
    with pytest.raises(ValueError, match=message):
        kernels.sample_tokens(logits, **arguments)
