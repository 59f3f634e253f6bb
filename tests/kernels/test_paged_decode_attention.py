"""paged_decode_attention against the last row of each sequence in float64."""

import pytest
import torch
from attention_inputs import LENGTHS, SCALE, naive, packed, paged
from three_way import assert_three_way

import kernels
from kernels.cpp_impl import paged_decode_attention as cpp_decode
from kernels.ops.paged_decode_attention import _op


def problem(page, lengths=LENGTHS, dtype=torch.float32, fill=torch.nan, seed=0, **sizes):
    """Arguments of the op, where unused slots hold `fill`, and the truth in float64."""
    q, k, v, cu_seqlens = packed(lengths, dtype=dtype, seed=seed, **sizes)
    last = cu_seqlens[1:].long() - 1
    truth = naive(q.double(), k.double(), v.double(), cu_seqlens)[last]
    plain = naive(q, k, v, cu_seqlens)[last]
    caches = paged(k, v, cu_seqlens, page, fill)
    return (q[last], *caches, torch.tensor(lengths).int()), plain, truth


# One slot a page; a prime; a register; the page of flash-attn, longer than most sequences.
PAGES = [1, 3, 16, 256]


@pytest.mark.parametrize("page", PAGES)
def test_pages(backend, page):
    arguments, plain, truth = problem(page)
    got = kernels.paged_decode_attention(*arguments, scale=SCALE)
    assert_three_way(got, plain, truth, 1e-6, "out")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(2, 2, 32), (6, 2, 64), (4, 1, 128), (3, 3, 24), (8, 2, 80), (30, 1, 8), (1, 1, 1)],
)
def test_heads_and_sizes(backend, heads, kv_heads, size):
    sizes = {"heads": heads, "kv_heads": kv_heads, "size": size}
    arguments, plain, truth = problem(16, [1, 17, 65, 130], **sizes)
    got = kernels.paged_decode_attention(*arguments, scale=SCALE)
    assert_three_way(got, plain, truth, 1e-6, "out")


def test_bfloat16(backend):
    arguments, plain, truth = problem(16, dtype=torch.bfloat16)
    got = kernels.paged_decode_attention(*arguments, scale=SCALE)
    assert got.dtype == torch.bfloat16
    assert_three_way(got, plain, truth, 2**-9, "out")


def test_float64_runs_on_torch():
    arguments, _, truth = problem(16, dtype=torch.float64)
    got = kernels.paged_decode_attention(*arguments, scale=SCALE)
    assert got.dtype == torch.float64 and (got - truth).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_gives_a_row_one_result(cpp, dtype):
    """The same bits for all page sizes, alone, in any company, with any threads; and those of the
    forward pass over the whole sequence, so that a token's log-prob in rollout is the trainer's.
    """
    q, k, v, cu_seqlens = packed(LENGTHS, dtype=dtype)
    want = kernels.varlen_attention(q, k, v, cu_seqlens, max(LENGTHS), scale=SCALE)
    want = want[cu_seqlens[1:].long() - 1]
    for page in PAGES:
        (q_last, *caches, block_table, lengths), _, _ = problem(page, dtype=dtype)

        def decode(rows, q=q_last, caches=caches, table=block_table, lengths=lengths):
            return kernels.paged_decode_attention(
                q[rows], *caches, table[rows], lengths[rows], scale=SCALE
            )

        assert decode(slice(None)).equal(want)
        order = torch.tensor([8, 0, 5, 5, 2])
        assert decode(order).equal(want[order])
        alone = torch.cat([decode(slice(row, row + 1)) for row in range(len(LENGTHS))])
        assert alone.equal(want)
        before = torch.get_num_threads()
        for threads in (3, 16):  # more threads than rows: heads are then shared out
            torch.set_num_threads(threads)
            assert decode(slice(None)).equal(want)
        torch.set_num_threads(before)


def test_cpp_writes_all_its_output_and_nothing_else(cpp):
    (q, *rest), plain, truth = problem(16, [1, 17, 65], heads=6, kv_heads=2, size=24)
    guard = 2
    out = torch.full((len(q) + 2 * guard, 6, 24), torch.nan)
    k_cache, v_cache, block_table, lengths = rest
    cpp_decode._decode(
        *(x.data_ptr() for x in (q, k_cache, v_cache)),
        False,
        block_table.data_ptr(),
        lengths.data_ptr(),
        *(len(q), 16, block_table.shape[1], 6, 2, 24, SCALE),
        out[guard:].data_ptr(),
        2,
    )
    assert_three_way(out[guard:-guard], plain, truth, 1e-6, "out")
    assert out[:guard].isnan().all() and out[-guard:].isnan().all()


def test_registration_and_compile(backend):
    arguments, _, _ = problem(3, [1, 7, 5])
    torch.library.opcheck(_op, (*arguments, SCALE))

    def decode(*tensors):
        return kernels.paged_decode_attention(*tensors, scale=SCALE)

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    assert compiled(*arguments).equal(decode(*arguments))


def test_no_rows(backend):
    arguments, _, _ = problem(3, [4])
    q, k_cache, v_cache, block_table, lengths = arguments
    got = kernels.paged_decode_attention(
        q[:0], k_cache, v_cache, block_table[:0], lengths[:0], scale=SCALE
    )
    assert got.shape == (0, 6, 16)


def test_refusals():
    (q, k, v, table, lengths), _, _ = problem(4, [1, 7])

    def refused(message, q=q, k=k, v=v, table=table, lengths=lengths):
        with pytest.raises(ValueError, match=message):
            kernels.paged_decode_attention(q, k, v, table, lengths, scale=SCALE)

    refused(r"cache_seqlens is torch\.int64, expected torch\.int32", lengths=lengths.long())
    refused(r"cache_seqlens has shape \[1\]", lengths=lengths[:1])
    refused(r"cache_seqlens holds 9, expected values in \[1, 9\)", lengths=lengths + 2)
    refused(r"cache_seqlens holds 0", lengths=lengths - 1)
    refused(r"block_table is torch\.int64", table=table.long())
    refused(r"block_table holds 4, expected values in \[0, 4\)", table=table + 1)
    refused("5 query heads cannot share 2", q=q[:, :5])
    refused(r"v_cache has shape \[4, 3, 2, 16\]", v=v[:, 1:])
    refused(r"k_cache is torch\.bfloat16, expected torch\.float32", k=k.bfloat16())
