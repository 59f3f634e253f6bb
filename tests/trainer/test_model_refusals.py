"""Weight files that must be refused by name, before anything in them runs (T27)."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.model import Decoder, ModelConfig, copy_tokenizer, load_model, save_model

CONFIG = ModelConfig(
    model_type="qwen2",
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)


@pytest.fixture
def folder(tmp_path):
    """A good model folder, one file."""
    model = Decoder(CONFIG)
    model.init_weights(0)
    save_model(model, tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A good model folder of several files."""
    model = Decoder(CONFIG)
    model.init_weights(0)
    save_model(model, tmp_path, max_shard=4000)
    return tmp_path


def load(folder):
    return load_model(folder, dtype=torch.float32)


def edit_json(file, **changes):
    """Set the keys of a JSON file; the value None removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensors(folder, **changes):
    """Set tensors of model.safetensors; the value None removes one. Dots are written as __."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | {k.replace("__", "."): v for k, v in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


def test_t27_pickle_weights_are_not_opened(folder):
    canary = folder / "canary"
    # A hand-written pickle that would create the canary, under both names.
    attack = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(attack)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"only pickle weights \(pytorch_model\.bin\)"):
        load(folder)
    (folder / "model.safetensors").write_bytes(attack)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a valid safetensors file"):
        load(folder)
    assert not canary.exists()


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        load(folder)


def safetensors_bytes(header, data=b"", claimed=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(start, end, shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(safetensors_bytes({}, claimed=2**40), id="oversized header"),
        pytest.param(safetensors_bytes({}, claimed=2**64 - 1), id="header length overflows"),
        pytest.param(struct.pack("<Q", 4) + b"nope", id="header is not JSON"),
        pytest.param(
            safetensors_bytes({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"\0" * 12),
            id="overlapping offsets",
        ),
        pytest.param(
            safetensors_bytes({"a": entry(0, 8, [2]), "b": entry(8, 2**40, [2])}, b"\0" * 16),
            id="offsets beyond the file",
        ),
        pytest.param(
            safetensors_bytes({"a": entry(0, 8, [3])}, b"\0" * 8), id="shape is not the bytes"
        ),
        pytest.param(
            safetensors_bytes({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, b"\0" * 20),
            id="hole between tensors",
        ),
    ],
)
def test_t27_broken_safetensors_is_refused_by_name(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a valid safetensors file"):
        load(folder)


def test_truncated_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..\\x.safetensors", "x.bin", 7],
)
def test_t27_index_may_name_only_safetensors_files_of_its_folder(sharded, name):
    # The files exist, so that only the name can be the reason.
    (sharded.parent / "x.safetensors").write_bytes(b"")
    (sharded / "x.bin").write_bytes(b"")
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, "model.norm.weight": name})
    with pytest.raises(ValueError, match="is no safetensors file of this folder") as refusal:
        load(sharded)
    assert str(index) in str(refusal.value)


@pytest.mark.parametrize("weight_map", [None, {}, ["model.safetensors"]])
def test_index_without_a_map(sharded, weight_map):
    edit_json(sharded / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(ValueError, match="weight_map"):
        load(sharded)


def test_shard_that_is_missing_or_left_out(sharded):
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    last = max(weight_map.values())
    edit_json(index, weight_map={k: v for k, v in weight_map.items() if v != last})
    with pytest.raises(ValueError, match=r"missing lm_head\.weight \(31, 16\)"):
        load(sharded)
    edit_json(index, weight_map=weight_map)
    (sharded / last).unlink()
    with pytest.raises(ValueError, match=f"'{last}' is missing"):
        load(sharded)


def test_tensor_in_two_shards(sharded):
    first, *_, last = sorted(sharded.glob("*.safetensors"))
    doubled = {"model.embed_tokens.weight": load_file(first)["model.embed_tokens.weight"]}
    save_file(load_file(last) | doubled, last)
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight is in another shard"):
        load(sharded)


def test_tensor_problems_are_all_listed(folder):
    edit_tensors(
        folder,
        model__norm__weight=None,
        model__layers__9__mlp__up_proj__weight=torch.zeros(2),
        model__layers__0__mlp__up_proj__weight=torch.zeros(24, 15),
    )
    with pytest.raises(ValueError) as refusal:
        load(folder)
    message = str(refusal.value)
    assert message.startswith(str(folder))
    assert "missing model.norm.weight (16,)" in message
    assert "unexpected model.layers.9.mlp.up_proj.weight" in message
    assert "model.layers.0.mlp.up_proj.weight is (24, 15), config.json asks for (24, 16)" in message


def test_t27_vocabulary_is_not_the_embedding(folder):
    edit_json(folder / "config.json", vocab_size=32)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is \(31, 16\).*\(32, 16\)"):
        load(folder)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"vocab": {"a": 0, "b": 31}}},
        {"model": {"vocab": [["piece", -1.0]] * 32}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 31, "content": "<x>"}]},
    ],
)
def test_t27_tokenizer_with_ids_beyond_the_embedding(folder, tokenizer):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({"model": {"vocab": {"a": 30}}}))
    load(folder)
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer\.json: highest token id 31.*vocab_size 31"):
        load(folder)


def test_tied_head_in_the_file(folder):
    edit_json(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the embedding"):
        load(folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, lm_head__weight=embedding.clone())
    model = load(folder)
    assert torch.equal(model.head_weight, embedding)
    save_model(model, folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert torch.equal(load(folder).head_weight, embedding)


def test_untied_head_must_be_in_the_file(folder):
    edit_tensors(folder, lm_head__weight=None)
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        load(folder)


def test_saving_replaces_older_weights_of_either_layout(sharded):
    model = Decoder(CONFIG)
    model.init_weights(1)
    save_model(model, sharded)
    assert [file.name for file in sharded.glob("model*")] == ["model.safetensors"]
    assert torch.equal(load(sharded).head_weight, model.head_weight)
    save_model(model, sharded, max_shard=4000)
    assert not (sharded / "model.safetensors").exists()


def test_loaded_weights_do_not_depend_on_the_file(folder):
    model = load(folder)
    before = model.head_weight.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * (folder / "model.safetensors").stat().st_size)
    assert torch.equal(model.head_weight, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_copy_tokenizer_takes_the_known_files_only(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        copy_tokenizer(source, target)
    known = ["chat_template.jinja", "generation_config.json", "tokenizer.json"]
    for name in [*known, "tokenization_evil.py", "pytorch_model.bin", "config.json"]:
        (source / name).write_text(name)
    copy_tokenizer(source, target)
    assert sorted(file.name for file in target.iterdir()) == known
    assert (target / "tokenizer.json").read_text() == "tokenizer.json"
