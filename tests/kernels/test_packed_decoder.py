"""What PackedDecoder refuses; tests/trainer/test_fused.py holds its numbers to the model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kernels
from kernels import DecoderWeights, LayerWeights, Linear, PackedDecoder


def weights(dtype: torch.dtype = torch.float32, **changes: Any) -> DecoderWeights:
    """One layer: V 20, H 8, I 12, two heads of 4 on one key head."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    parts = {
        "input_norm": random(8),
        "q": Linear(random(8, 8), random(8)),
        "k": Linear(random(4, 8)),
    }
    parts |= {"v": Linear(random(4, 8)), "q_norm": None, "k_norm": None, "o": Linear(random(8, 8))}
    parts |= {"post_norm": random(8), "gate": Linear(random(12, 8)), "up": Linear(random(12, 8))}
    parts |= {"down": Linear(random(8, 12))} | changes
    return DecoderWeights(
        random(20, 8), [LayerWeights(**parts)], random(8), random(20, 8), 2, 1, 4, 1e-6, 0.5
    )


def arguments(rows: int = 3) -> dict[str, Any]:
    """Rows with 0, 1, … tokens in pages of 2; each page is one row's."""
    index = torch.arange(rows)
    cos, sin = torch.ones(rows, 2), torch.zeros(rows, 2)
    cache = torch.zeros(2, 1, 2 * rows, 2, 1, 4)
    return {
        "tokens": index, "lengths": index, "cos": cos, "sin": sin,
        "k_cache": cache[0], "v_cache": cache[1],
        "block_table": torch.arange(2 * rows).int().view(rows, 2),
        "temperature": 1.0, "seeds": index, "positions": index,
    }  # fmt: skip


def test_step_writes_its_place_only(cpp):
    given = arguments()
    given["k_cache"].fill_(torch.nan)
    given["v_cache"].fill_(torch.nan)
    given["k_cache"][0, 2, 0], given["v_cache"][0, 2, 0] = 1.0, 1.0  # row 1 has one token
    given["k_cache"][0, 4], given["v_cache"][0, 4] = 1.0, 1.0  # row 2 has two
    before = given["k_cache"].clone()
    drawn, logprob = PackedDecoder(weights(), 3).decode(**given)
    assert drawn.dtype == torch.int64 and logprob.isfinite().all()
    changed = (given["k_cache"] != before).flatten(3).any(-1) & given["k_cache"].isfinite().all(
        (3, 4)
    )
    assert changed.nonzero().tolist() == [[0, 0, 0], [0, 2, 1], [0, 5, 0]]


@pytest.mark.parametrize("inner", [12, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_a_call_are_those_of_a_call_each(cpp, dtype, inner, monkeypatch):
    """Bits, where threads take rows and where they share them. Row 0 has NaN logits at once."""
    gate, down = torch.randn(inner, 8).to(dtype), torch.randn(8, inner).to(dtype)
    model = weights(dtype, gate=Linear(gate), up=Linear(gate), down=Linear(down / inner))
    if not kernels.can_pack(model):
        pytest.skip("this processor has no AVX-512 BF16")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model.embedding[7] = torch.nan
    angle = torch.arange(9)[:, None] * torch.tensor([1.0, 0.1])
    given = arguments(4) | {"cos": angle.cos(), "sin": angle.sin(), "tokens": torch.arange(7, 11)}
    given["block_table"] = torch.arange(20).int().view(5, 4).t()

    def draw(steps: int, **settings: int) -> tuple[torch.Tensor, ...]:
        caches = {name: torch.zeros(1, 20, 2, 1, 4, dtype=dtype) for name in ("k_cache", "v_cache")}
        now, drawn, decoder = given | caches | settings, [], PackedDecoder(model, 4)
        for _ in range(0, 5, steps):
            drawn.append(decoder.decode(**now, steps=steps))
            now |= {name: now[name] + steps for name in ("lengths", "positions")}
            now["tokens"] = drawn[-1][0][-1].clamp(min=0)
        caches = (x[:, given["block_table"][1:].long()] for x in caches.values())
        return *map(torch.cat, zip(*drawn, strict=True)), *caches

    tokens, logprob, *caches = draw(1)
    assert (tokens[:, 0] == -1).all() and (tokens[:, 1:] >= 0).all()
    for stop in (-1, int(tokens[1, 2])):
        found_tokens, found_logprob, *found_caches = draw(5, stop_id=stop)
        ends = (tokens < 0) | (tokens == stop)
        behind = ends.cumsum(0) - ends.int() > 0
        assert behind[2:, 2].all() == (stop >= 0) and not behind[:, 1:].all(0).any()
        assert found_tokens.equal(tokens.where(~behind, -1))
        assert found_logprob[:, 1:].equal(logprob.where(~behind, 0)[:, 1:])
        assert stop >= 0 or all(map(torch.equal, found_caches, caches))


def test_steps_ahead(cpp):
    """Some for weights up to 16 MiB, one for more."""
    for inner, steps in ((12, 8), (2**17, 8), (2**18, 1)):  # three products of 8 numbers each
        gate, down = Linear(torch.ones(inner, 8)), Linear(torch.ones(8, inner))
        model = weights(gate=gate, up=gate, down=down)
        assert PackedDecoder(model, 1).steps_ahead == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([0, 1, 20])}, "row 2 is out of range: token 20"),
        ({"tokens": torch.tensor([0, -1, 2])}, "row 1 is out of range: token -1"),
        ({"lengths": torch.tensor([4, 1, 2])}, "row 0 .*4 tokens in the cache and 1 more"),
        ({"steps": 3} | dict.fromkeys(("cos", "sin"), torch.ones(9, 2)), "row 2 .* and 3 more"),
        ({"cos": torch.ones(2, 2), "sin": torch.ones(2, 2)}, "row 2 .*angles of 2 positions"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"block_table": torch.tensor([[0, 1], [2, 6], [4, 5]]).int()}, r"pages \[2, 6\]"),
        ({"block_table": torch.zeros(3, 2).long()}, "block_table is torch.int64"),
        ({"cos": torch.ones(3, 4)}, "cos has shape"),
        ({"seeds": torch.zeros(2).long()}, "seeds has shape"),
        ({"k_cache": torch.zeros(1, 6, 2, 1, 8)[..., ::2]}, "k_cache must be dense"),
        ({"v_cache": torch.zeros(2, 6, 2, 1, 4)}, "v_cache has shape"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"vocab_size": 21}, "vocab_size"),
    ],
)
def test_decode_refuses(cpp, changes, message):
    with pytest.raises(ValueError, match=message):
        PackedDecoder(weights(), 3).decode(**(arguments() | changes))


def test_there_is_room_for_so_many_rows(cpp):
    decoder = PackedDecoder(weights(), 3)
    with pytest.raises(ValueError, match="4 rows, but there is room for 3"):
        decoder.decode(**arguments(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([0, 1, 20])}, "tokens holds 20"),
        ({"sources": torch.tensor([0, 3, 1])}, "sources holds 3"),
        ({"targets": torch.tensor([0, 1, 12])}, "targets holds 12"),
        ({"last": torch.tensor([-1])}, "last holds -1"),
        ({"cu_seqlens": torch.tensor([0, 2]).int()}, "cu_seqlens"),
        ({"prefix": torch.tensor([0]).int()}, "prefix"),
    ],
)
def test_prefill_refuses(cpp, changes, message):
    index = torch.arange(3)
    given = {k: v for k, v in arguments().items() if k in ("tokens", "cos", "sin")}
    given |= {k: v for k, v in arguments().items() if k.endswith("cache")}
    given |= {"cu_seqlens": torch.tensor([0, 3]).int(), "sources": index, "targets": index}
    given |= {"last": torch.tensor([2])}
    decoder = PackedDecoder(weights(), 1)
    assert decoder.prefill(**given).shape == (1, 8)
    with pytest.raises(ValueError, match=message):
        decoder.prefill(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": Linear(torch.ones(8, 9))}, "layer 0, q has shape"),
        ({"down": Linear(torch.ones(8, 12), torch.ones(7))}, "layer 0, bias of down has shape"),
        ({"k_norm": torch.ones(8)}, "layer 0, k_norm has shape"),
        ({"post_norm": torch.ones(8).bfloat16()}, r"layer 0, post_norm is torch\.bfloat16"),
    ],
)
def test_weights_that_do_not_fit(cpp, changes, message):
    with pytest.raises(ValueError, match=message):
        PackedDecoder(weights(**changes), 1)


def test_where_it_runs(cpp):
    assert kernels.can_pack(weights())
    assert not kernels.can_pack(weights(torch.float64))
    assert not kernels.can_pack(weights()._replace(layers=[]))
    with kernels.override("swiglu=torch"):
        assert not kernels.can_pack(weights())
        with pytest.raises(ValueError, match="on the CPU only"):
            PackedDecoder(weights(), 1)
