"""`python -m trainer.pretrain`: make the embedded base, its tokenizer and its card.

Plain supervised training on trainer/embedded/corpus.py, through the same decoder, packing and fused
log-prob as the RL that follows. Same seed, same thread count: same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, see trainer/run.py

import torch
from rich.progress import track
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import kernels
from trainer.embedded.card import write_card
from trainer.embedded.corpus import Hints, example
from trainer.embedded.tokenizer import save_tokenizer
from trainer.model import Decoder, ModelConfig, PackedAttention, save_model
from trainer.packing import micro_batches, pack

ROWS_MULTIPLE = 64  # the embedding is padded, so the vocabulary tail is met on every run


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    steps: int = 1200
    batch: int = 128
    lr: float = 3e-3
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    inner: int = 320
    hint_share_early: float = 0.8  # learn to read a budget and to count ...
    early: float = 0.72  # ... in so much of the training, then ...
    hint_share: float = 0.3  # ... unlearn to trust it
    hint_noise: float = 0.06
    micro_batch_tokens: int = 4096
    seed: int = 0


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> ModelConfig:
    """A Qwen2 of the recipe's size, its embedding rows padded to a multiple."""
    return ModelConfig(
        model_type="qwen2",
        vocab_size=-(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, out: Path
) -> tuple[Decoder, list[float]]:
    """The trained model, saved to `out` as it goes, and its loss (nats a token) at each step."""
    model = Decoder(model_config(recipe, tokenizer))
    model.init_weights(recipe.seed)
    adamw = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    losses = []
    for step in track(range(recipe.steps), description="pretraining"):
        early = step < recipe.early * recipe.steps
        hints = Hints(recipe.hint_share_early if early else recipe.hint_share, recipe.hint_noise)
        start = step * recipe.batch
        pairs = [example(tokenizer, recipe.seed, start + i, hints) for i in range(recipe.batch)]
        for group in adamw.param_groups:
            group["lr"] = recipe.lr * schedule(step, recipe.steps)
        losses.append(supervised_step(model, pairs, len(tokenizer), recipe.micro_batch_tokens))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        if step % 100 == 99:
            print(f"step {step + 1}: loss {sum(losses[-100:]) / 100:.4f}", flush=True)
            save_model(model, out)
    return model, losses


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 100 steps, then a cosine down to 5%."""
    return min(1.0, (step + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))


def supervised_step(
    model: Decoder, pairs: list[tuple[tuple[int, ...], list[int]]], vocab_size: int, max_tokens: int
) -> float:
    """Backward of the mean log-loss over chain tokens; returns the loss."""
    count = sum(len(chain) for _, chain in pairs)
    total = 0.0
    sizes = [len(p) for p, _ in pairs], [len(c) for _, c in pairs]
    for members in micro_batches(*sizes, None, max_tokens, lambda work: work.tokens):
        weight = torch.full((len(members),), 1 / count)
        batch = pack(
            [pairs[i][0] for i in members], [pairs[i][1] for i in members], weight, members
        )
        attend = PackedAttention(batch.cu_seqlens, batch.max_seqlen, model.config.attention_scale)
        hidden = model(batch.input_ids, batch.position_ids, attend)
        logprob, _ = kernels.linear_logprob(
            hidden[batch.rows],
            model.head_weight,
            batch.targets,
            temperature=1.0,
            vocab_size=vocab_size,
        )
        loss = -logprob.sum() / count
        loss.backward()
        total += loss.item()
    return total


def main() -> None:
    """Parse the recipe from the command line, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "embedded" / "base")
    for spec in dataclasses.fields(Recipe):
        parser.add_argument(
            f"--{spec.name.replace('_', '-')}", type=type(spec.default), default=spec.default
        )
    values = vars(parser.parse_args())
    out = values.pop("out")
    recipe = Recipe(**values)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out, local_files_only=True)
    begin = time.time()
    model, losses = train(recipe, tokenizer, out)
    save_model(model, out)
    record = dataclasses.asdict(recipe) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "threads": torch.get_num_threads(),
    }
    (out / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"trained in {time.time() - begin:.0f} s; measuring", flush=True)
    write_card(out, model, tokenizer, record)
    print(f"{out}/README.md")


if __name__ == "__main__":
    main()
