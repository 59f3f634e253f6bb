"""Read and write decoder weights as Hugging Face safetensors, single file or sharded.

Only safetensors is read: pickle can run code. Everything the files say is checked against
`config.json` before a parameter is filled.
"""

from __future__ import annotations

import json
import shutil
from os.path import isfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kernels import split_bits
from trainer.model.config import ModelConfig, read_config, read_json
from trainer.model.decoder import Decoder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD = 5 * 10**9  # bytes
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
)
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_model(
    folder: str | Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Decoder:
    """A decoder with the weights of `folder` converted to `dtype` on `device`.

    Raises ValueError naming the folder, the file and the tensors: no safetensors weights, a broken
    or malicious file, tensors that are missing, unexpected or of another shape than config.json
    asks for, a tied head that is not the embedding, a tokenizer with ids beyond the embedding.
    """
    folder = Path(folder)
    config = read_config(folder)
    _check_tokenizer(folder, config)
    model = Decoder(config, device="meta", dtype=dtype)
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        for name, tensor in _read_tensors(file).items():
            if name in state:
                raise ValueError(f"{file}: {name} is in another shard as well")
            state[name] = _converted(tensor, dtype).to(device)
    if config.tie_word_embeddings and _HEAD in state:
        head = state.pop(_HEAD)
        if _EMBEDDING in state and not torch.equal(head, state[_EMBEDDING]):
            raise ValueError(f"{folder}: tie_word_embeddings, but {_HEAD} is not the embedding")
    _check_tensors(folder, model, state)
    model.load_state_dict(state, assign=True)
    return model


def save_model(
    model: Decoder,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard: int = MAX_SHARD,
) -> None:
    """Write config.json and the weights so that `AutoModelForCausalLM.from_pretrained` reads them.

    dtype: that of the file, the model's own by default. A tied head is not written, as
    transformers has it. Weights of more than `max_shard` bytes are split and get an index. Weights
    already in `folder` are replaced; not atomic, see checkpoint.py for that.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (SINGLE, INDEX, "model-*-of-*.safetensors"):
        for file in folder.glob(old):
            file.unlink()  # else a reader could prefer them to the new ones
    dtype = dtype or model.head_weight.dtype
    state = model.state_dict()
    shards = _split(state, dtype, max_shard)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors = {name: state[name].to("cpu", dtype).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})  # transformers asks for it
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    config = {**model.config.to_hf_dict(), "dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config)


def copy_tokenizer(source: str | Path, target: str | Path) -> None:
    """Copy the tokenizer and generation settings of one model folder to another, nothing else.

    Raises ValueError when `source` has no tokenizer.json and no tokenizer.model.
    """
    source, target = Path(source), Path(target)
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(f"{source} has no tokenizer.json and no tokenizer.model")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype`, rounded to bfloat16 as masters are to the copy that computes.

    A copy always: the file is memory-mapped, so its tensors are unaligned and die with it.
    """
    if (tensor.dtype, dtype) == (torch.float32, torch.bfloat16):
        return split_bits(tensor)[0]
    return tensor.to(dtype, copy=True)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in the order of their names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickles = sorted(p.name for s in ("*.bin", "*.pt", "*.pth") for p in folder.glob(s))
        found = f"only pickle weights ({', '.join(pickles)}), which can run code" if pickles else ""
        raise ValueError(f"{folder} has no {SINGLE} and no {INDEX}; {found or 'no weights'}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX}: weight_map must map tensor names to files")
    files = []
    for name in sorted(set(map(str, weight_map.values()))):
        # A plain name only: a path could lead out of the folder.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: {name!r} is no safetensors file of this folder")
        if not isfile(folder / name):  # False for a name too long for any; Path.is_file raises
            raise ValueError(f"{folder / INDEX}: {name!r} is missing")
        files.append(folder / name)
    return files


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped; its library checks header and offsets."""
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: not a valid safetensors file ({error})") from error


def _check_tensors(folder: Path, model: Decoder, state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.endswith("rotary_emb.inv_freq")]:
        del state[name]  # early Llama exports hold it; config.json says the same
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"missing {name} {expected[name]}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(tensor.shape)}, config.json asks for {expected[name]}"
        for name, tensor in state.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{folder}: {'; '.join(problems[:10])}{more}")


def _check_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Refuse a tokenizer that can make ids the embedding has no row for; fewer ids are usual."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    content = read_json(file)
    try:
        vocab = content.get("model", {}).get("vocab", {})  # BPE: token to id; Unigram: pieces
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in content.get("added_tokens", [])]
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: not a tokenizer ({error!r})") from error
    if any(type(token) is not int for token in ids):
        raise ValueError(f"{file}: a token id is not an integer")
    if max(ids, default=-1) >= config.vocab_size:
        raise ValueError(
            f"{file}: highest token id {max(ids)}, but config.json has vocab_size "
            f"{config.vocab_size}"
        )


def _split(state: dict[str, Tensor], dtype: torch.dtype, max_shard: int) -> list[list[str]]:
    """Names in order, in as few runs of at most `max_shard` bytes as greedy filling gives."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * dtype.itemsize
        if shards[-1] and filled + size > max_shard:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
