"""The tensors of a rollout: paged cache, state of the rows, prefill, decode step, sampling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import kernels
from trainer.model import DecodeAttention, Decoder, PackedAttention, PagedCache
from trainer.rollout import fused, graphs
from trainer.rollout.prompts import pack_prompts
from trainer.rollout.requests import Sampling
from trainer.rollout.scheduler import Admission, Sample

SYNC_EVERY = 8  # decode steps between two looks at the tokens, on a device that runs ahead

_TOKEN, _LENGTH, _PROMPT, _SEED = range(4)


class Runner:
    """Runs `model` on the rows of one engine call; rows 0..n-1 hold the running samples."""

    def __init__(
        self,
        model: Decoder,
        sampling: Sampling,
        *,
        eos_id: int,
        vocab_size: int,
        rows: int,
        pages: int,
        page_size: int,
        pages_per_row: int,
        cuda_graphs: bool,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.eos_id, self.vocab_size = eos_id, vocab_size
        self.page_size = page_size
        self.scale = model.config.attention_scale
        self.device = model.head_weight.device
        # One page more, for the rows that fill up a graph.
        self.cache = PagedCache.empty(
            model.config, pages + 1, page_size, model.head_weight.dtype, self.device
        )
        self.scratch_page = pages
        # Last token, tokens in the cache, tokens of the prompt, seed
        self.rows = torch.zeros(4, rows, dtype=torch.int64, device=self.device)
        self.block_table = torch.zeros(rows, pages_per_row, dtype=torch.int32, device=self.device)
        self.cuda_graphs = cuda_graphs
        self._graphs: dict[int, graphs.Step] = {}
        self.fused = not cuda_graphs and fused.can_fuse(model)

    @cached_property
    def packed(self) -> kernels.PackedDecoder:
        """The model's weights, packed for this call at their first use."""
        return kernels.PackedDecoder(fused.weights(self.model), self.rows.shape[1])

    @cached_property
    def _angles(self) -> tuple[Tensor, Tensor]:
        """cos and sin of all positions that a row has pages for."""
        return self.model.model.rotary(torch.arange(self.block_table.shape[1] * self.page_size))

    @property
    def steps_ahead(self) -> int:
        """How many steps one `decode` should take before anyone looks at the tokens."""
        if self.device.type != "cpu":
            return SYNC_EVERY
        return self.packed.steps_ahead if self.fused else 1

    def start(self, admission: Admission, rows: int) -> tuple[Tensor, Tensor]:
        """Prefills and fills the rows from `rows` on; their first tokens, as of one `decode`."""
        self._prefill(admission)
        if admission.copies:
            source, target = self._ints(admission.copies).t()
            self.cache.copy_pages(source, target)
        groups = {id(group): group for _, group in admission.started}
        order = {key: place for place, key in enumerate(groups)}
        last = torch.stack([group.state for group in groups.values()])  # [groups, H]
        hidden = last[self._ints([order[id(group)] for _, group in admission.started])]
        new = slice(rows, rows + len(admission.started))
        width = self.block_table.shape[1]
        state, tables = [], []
        for row, (sample, group) in enumerate(admission.started, rows):
            sample.row = row
            request = sample.request
            state.append((0, len(group.token_ids), len(request.token_ids), request.seed))
            tables.append(sample.block_table + [0] * (width - len(sample.block_table)))
        self.rows[:, new] = self._ints(state).t()
        self.block_table[new] = self._ints(tables).int()
        tokens, logprobs = self._draw(hidden, self.rows[:, new])
        return tokens[None], logprobs[None]

    def decode(self, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        """Tokens for rows 0..rows-1, int64, and their logprobs, float32: [steps, rows] each.

        -1 where logits are NaN. What follows EOS is of no meaning.
        """
        if self.fused:
            return self._fused_steps(rows, steps)
        step = self._replay if self.cuda_graphs else self._step
        tokens, logprobs = zip(*(step(rows) for _ in range(steps)), strict=True)
        return torch.stack(tokens), torch.stack(logprobs)

    def _replay(self, rows: int) -> tuple[Tensor, Tensor]:
        """As _step, by a graph."""
        size = graphs.padded_rows(rows, self.rows.shape[1])
        # Rows that only fill up the graph: their tokens go to a page that nobody reads.
        self.block_table[rows:size] = self.scratch_page
        self.rows[:, rows:size] = 0
        if size not in self._graphs:
            self._graphs[size] = graphs.capture(lambda: self._step(size), self.rows)
        tokens, logprobs = self._graphs[size]()
        return tokens[:rows].clone(), logprobs[:rows].clone()  # the next replay writes there again

    def _fused_steps(self, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        """As _step, in one call on packed weights."""
        state = self.rows[:, :rows]
        length = state[_LENGTH]
        tokens, logprobs = self.packed.decode(
            state[_TOKEN],
            length,
            *self._angles,
            self.cache.k,
            self.cache.v,
            self.block_table[:rows],
            steps=steps,
            stop_id=self.eos_id,
            **self._draws(state, length + 1),
        )
        length += steps  # in place, as in _step
        state[_TOKEN] = tokens[-1].clamp(min=0)
        return tokens, logprobs

    def _step(self, rows: int) -> tuple[Tensor, Tensor]:
        """A token more for each row: (tokens, logprobs), [rows] each."""
        state = self.rows[:, :rows]
        length = state[_LENGTH]
        attend = DecodeAttention(self.cache, self.block_table[:rows], length, self.scale)
        hidden = self.model(state[_TOKEN], length, attend)  # [rows, H]
        length += 1  # in place: these are the rows' own counts
        return self._draw(hidden, state)

    def keep(self, running: Sequence[Sample]) -> None:
        """Closes the gaps that samples have left which are no longer running."""
        index = self._ints([sample.row for sample in running])
        self.rows[:, : len(running)] = self.rows[:, index]
        self.block_table[: len(running)] = self.block_table[index]
        for row, sample in enumerate(running):
            sample.row = row

    def extend(self, grown: Sequence[Sample]) -> None:
        """Tells the rows of `grown` of their new last page."""
        if grown:
            cells = [(s.row, len(s.block_table) - 1, s.block_table[-1]) for s in grown]
            row, column, page = self._ints(cells).t()
            self.block_table[row, column] = page.int()

    def replace(self, tokens: Sequence[tuple[int, int]]) -> None:
        """Forced text: (row, token) to take the place of what was drawn last."""
        row, token = self._ints(tokens).t()
        self.rows[_TOKEN, row] = token

    def _prefill(self, admission: Admission) -> None:
        """Runs the admission's prompts, packed, into their pages; keeps their last hidden state."""
        if not admission.prefill:
            return
        prompts, tables = zip(
            *((g.token_ids, table) for g, table in admission.prefill), strict=True
        )
        if self.fused:
            packed = pack_prompts(prompts, tables, self.page_size, share=True)
            angles, caches = self.model.model.rotary(packed.positions), (self.cache.k, self.cache.v)
            states = self.packed.prefill(
                packed.ids,
                *angles,
                packed.cu_seqlens,
                *caches,
                sources=packed.sources,
                targets=packed.targets,
                last=packed.last,
                prefix=packed.prefix,
            )
        else:
            packed = pack_prompts(prompts, tables, self.page_size, share=False)
            slots, ids, positions, last = (
                x.to(self.device, non_blocking=True)
                for x in (packed.targets, packed.ids, packed.positions, packed.last)
            )
            longest = max(map(len, prompts))
            attend = PackedAttention(packed.cu_seqlens, longest, self.scale, self.cache, slots)
            states = self.model(ids, positions, attend)[last]  # [groups, H], the rest is freed
        for (group, _), state in zip(admission.prefill, states, strict=True):
            group.state = state

    def _draw(self, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, which becomes its last one; -1 where logits are NaN."""
        draws = self._draws(state, state[_LENGTH])
        if self.fused:
            tokens, logprob = self.packed.draw(hidden, **draws)
        else:
            tokens, logprob, _ = kernels.sample_tokens(self.model.logits(hidden), **draws)
        # Clamped for a device that decodes on before anyone has looked at the -1.
        state[_TOKEN] = tokens.clamp(min=0)
        return tokens, logprob

    def _draws(self, state: Tensor, length: Tensor) -> dict[str, Any]:
        """How the rows of `state` draw the token that follows `length` tokens."""
        return {
            "temperature": self.sampling.temperature,
            "top_k": self.sampling.top_k,
            "top_p": self.sampling.top_p,
            "seeds": state[_SEED],
            "positions": length - state[_PROMPT],
            "vocab_size": self.vocab_size,
        }

    def _ints(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device, non_blocking=True)
