"""A batched KV-cache sampler on the training weights: no copy, no sync, one model definition.

Requests run in waves of `batch_size` rows. A prompt asked for several times is prefilled once. Rows
that have ended are squeezed out of the batch when enough have gathered. Caches live inside one
`generate` call, so none survives a weight update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import kernels
from trainer.model import CachedAttention, Decoder, PackedAttention, mixed
from trainer.types import Completion

SQUEEZE_BELOW = 0.8  # share of live rows; below it the ended ones leave the batch


@dataclass(frozen=True)
class Request:
    """One sample to draw: its tokens are a pure function of prompt, weights, sampling and seed."""

    token_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int


@dataclass(frozen=True)
class Sampling:
    temperature: float
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class _Wave:
    """The live rows of one wave; `rows` maps them to the wave's requests."""

    rows: torch.Tensor  # int64 [B]
    seeds: torch.Tensor  # int64 [B]
    limits: torch.Tensor  # int64 [B], tokens still allowed to each row in all
    lengths: torch.Tensor  # int64 [B], tokens in the cache
    block_table: torch.Tensor  # int32 [B, 1]: one page a row
    cache_k: torch.Tensor  # [layers, pages, S, Hkv, D]
    cache_v: torch.Tensor

    def keep(self, alive: torch.Tensor) -> None:
        """Squeeze all row tensors to the rows in `alive` (bool [B]); the cache stays in place."""
        index = alive.nonzero().squeeze(1)
        for name in ("rows", "seeds", "limits", "lengths", "block_table"):
            setattr(self, name, getattr(self, name)[index])


class RolloutEngine:
    """Draws completions from `model`. `vocab_size` is the tokenizer's: ids above never come out."""

    def __init__(
        self, model: Decoder, *, eos_id: int, vocab_size: int, batch_size: int, dtype: str
    ) -> None:
        self.model, self.eos_id = model, eos_id
        self.scale = model.config.attention_scale
        self.vocab_size, self.batch_size, self.dtype = vocab_size, batch_size, dtype

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Completion]:
        """One completion a request, in their order. Raises FloatingPointError on NaN logits.

        `on_progress(done, total)` is called at each token; an exception it raises stops the work.
        """
        # Long limits first and together: a wave lasts as long as its longest row.
        order = sorted(range(len(requests)), key=lambda i: -requests[i].max_new_tokens)
        results: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            wave = [requests[i] for i in members]
            before = len(results)
            with mixed(self.model.head_weight.device, self.dtype):
                done = self._run_wave(
                    wave,
                    sampling,
                    lambda n, before=before: on_progress(before + n, len(requests)),
                )
            results.update(zip(members, done, strict=True))
        return [results[i] for i in range(len(requests))]

    def _run_wave(
        self, requests: list[Request], sampling: Sampling, on_progress: Callable[[int], None]
    ) -> list[Completion]:
        wave, hidden = self._prefill(requests)
        count, longest = len(requests), max(r.max_new_tokens for r in requests)
        device = hidden.device
        tokens = torch.zeros(count, longest, dtype=torch.int64, device=device)
        logprobs = torch.zeros(count, longest, dtype=torch.float32, device=device)
        used = torch.zeros(count, dtype=torch.int64, device=device)
        alive = torch.ones(count, dtype=torch.bool, device=device)
        for position in range(longest):
            drawn = kernels.sample_tokens(
                self.model.logits(hidden),
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                seeds=wave.seeds,
                positions=torch.full_like(wave.seeds, position),
                vocab_size=self.vocab_size,
            )
            if bool((drawn.tokens < 0).any()):
                raise FloatingPointError("the model's logits are NaN: the weights are damaged")
            live = wave.rows[alive]
            tokens[live, position] = drawn.tokens[alive]
            logprobs[live, position] = drawn.logprob[alive]
            used[live] = position + 1
            alive &= (drawn.tokens != self.eos_id) & (position + 1 < wave.limits)
            left = int(alive.sum())
            on_progress(count - left)
            if left == 0:
                break
            last = drawn.tokens
            if left <= SQUEEZE_BELOW * len(alive):
                last = last[alive]
                wave.keep(alive)
                alive = alive[alive]
            attend = CachedAttention(
                wave.cache_k, wave.cache_v, wave.block_table, wave.lengths, self.scale
            )
            hidden = self.model(last, wave.lengths, attend)
            wave.lengths = wave.lengths + 1
        return self._completions(tokens, logprobs, used)

    def _completions(
        self, tokens: torch.Tensor, logprobs: torch.Tensor, used: torch.Tensor
    ) -> list[Completion]:
        counts = used.tolist()
        rows = zip(tokens.tolist(), logprobs.tolist(), counts, strict=True)
        return [Completion(ids[:n], lps[:n], ids[n - 1] != self.eos_id) for ids, lps, n in rows]

    def _prefill(self, requests: list[Request]) -> tuple[_Wave, torch.Tensor]:
        """Run each distinct prompt once, packed; the wave and its last hidden states [B, H]."""
        distinct = {r.token_ids: i for i, r in reversed(list(enumerate(requests)))}
        prompts = list(distinct)
        place = {ids: i for i, ids in enumerate(prompts)}
        device = self.model.head_weight.device
        source = torch.tensor([place[r.token_ids] for r in requests], device=device)  # [B]
        sizes = [len(ids) for ids in prompts]
        cu_seqlens = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
        ids = torch.tensor([t for p in prompts for t in p], device=device)  # [T]
        positions = torch.cat([torch.arange(n) for n in sizes]).to(device)  # [T]
        attend = PackedAttention(cu_seqlens.to(device), max(sizes), self.scale, kv=[])
        hidden = self.model(ids, positions, attend)
        room = max(len(r.token_ids) + r.max_new_tokens for r in requests)
        # Row and column of each prompt token in a [prompts, room] cache.
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
        caches = []
        for part in (0, 1):
            layers = [kv[part] for kv in attend.kv]  # each [T, Hkv, D]
            shape = (len(layers), len(requests), room, *layers[0].shape[1:])
            cache = layers[0].new_zeros(shape)
            for layer, values in enumerate(layers):
                by_prompt = values.new_zeros(len(prompts), max(sizes), *values.shape[1:])
                by_prompt[owner, positions] = values
                cache[layer, :, : max(sizes)] = by_prompt[source]
            caches.append(cache)
        lengths = torch.tensor(sizes, device=device)[source]
        rows = torch.arange(len(requests), device=device)
        wave = _Wave(
            rows=rows,
            seeds=torch.tensor([r.seed for r in requests], device=device),
            limits=torch.tensor([r.max_new_tokens for r in requests], device=device),
            lengths=lengths,
            block_table=rows[:, None].int(),
            cache_k=caches[0],
            cache_v=caches[1],
        )
        last = cu_seqlens[1:].to(device)[source].long() - 1
        return wave, hidden[last]
