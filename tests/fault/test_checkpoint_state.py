"""What is inside a checkpoint comes back exactly: JSON, tensors, AdamW state."""

import json
import math
import os

import pytest
import torch

from trainer.checkpoint import CheckpointError, load_optimizer_tensors, optimizer_tensors
from trainer.files import load_tensors, read_json, save_tensors, write_json_atomic

# JSON


def test_json_round_trip_is_exact(tmp_path):
    path = tmp_path / "state.json"
    state = {
        "floats": [0.1, 1 / 3, 5e-324, math.nextafter(1.0, 2.0), -0.0, 1.7976931348623157e308],
        "ints": [2**64 - 1, -(2**63), 10**40],
        "text": 'é "\\ \ud800 \n',
        "none": None,
    }
    write_json_atomic(path, state)
    assert read_json(path) == state
    assert math.copysign(1, read_json(path)["floats"][4]) == -1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_not_json(tmp_path, value):
    path = tmp_path / "state.json"
    write_json_atomic(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"loss": value})
    assert read_json(path) == {"loss": 1.0}
    path.write_text(json.dumps({"loss": value}))
    with pytest.raises(ValueError, match="not a JSON number"):
        read_json(path)


def test_json_keeps_the_old_file_when_the_write_fails(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_json_atomic(path, {"step": 1})

    def fail(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_json_atomic(path, {"step": 2})
    assert read_json(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


# Tensors


def test_tensors_round_trip(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {
        "fp32": torch.randn(3, 5),
        "bf16": torch.randn(7).bfloat16(),
        "nan": torch.tensor([math.nan, math.inf, -0.0]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "int64": torch.tensor([2**63 - 1]),
        "rng": torch.get_rng_state(),
        "transposed": torch.randn(4, 6).T,
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        got, want = (t.detach().contiguous().view(-1) for t in (loaded[name], tensor))
        assert got.view(torch.uint8).equal(want.view(torch.uint8)), name


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path):
    """Retention deletes the file while the moments live on: they must be in memory."""
    path = tmp_path / "t.safetensors"
    tensor = torch.randn(100_000)
    save_tensors(path, {"a": tensor})
    loaded = load_tensors(path)["a"]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert loaded.equal(tensor)


# AdamW


def make(
    seed: int = 0, lr: float = 1e-2, **kwargs: bool
) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
    """Three parameters in two groups, not in the order of the names; "idle" gets no gradient."""
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in {"a.weight": (5, 3), "idle": (2,), "b.bias": (7,)}.items()
    }
    groups = [
        {"params": [params["b.bias"]], "weight_decay": 0.0},
        {"params": [params["idle"], params["a.weight"]], "weight_decay": 0.1},
    ]
    return params, torch.optim.AdamW(groups, lr=lr, **kwargs)


def train(params, optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name in ("a.weight", "b.bias"):
            params[name].grad = torch.randn(params[name].shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_adamw_continues_bit_for_bit(tmp_path, kind):
    params, optimizer = make(**kind)
    train(params, optimizer, range(3))
    tensors, steps = optimizer_tensors(optimizer, params)
    assert steps == {"a.weight": 3, "b.bias": 3}
    save_tensors(tmp_path / "o.safetensors", tensors)
    write_json_atomic(tmp_path / "steps.json", steps)
    weights = {name: param.detach().clone() for name, param in params.items()}
    train(params, optimizer, range(3, 6))

    resumed, fresh = {}, {}
    for result, with_state in ((resumed, True), (fresh, False)):
        again, other = make(seed=1, **kind)
        with torch.no_grad():
            for name, param in again.items():
                param.copy_(weights[name])
        if with_state:
            saved = load_tensors(tmp_path / "o.safetensors")
            load_optimizer_tensors(other, again, saved, read_json(tmp_path / "steps.json"))
        train(again, other, range(3, 6))
        result.update(again)
        result["state"] = optimizer_tensors(other, again)

    assert all(resumed[name].equal(param) for name, param in params.items())
    moments, counts = optimizer_tensors(optimizer, params)
    assert counts == resumed["state"][1]
    assert all(resumed["state"][0][key].equal(value) for key, value in moments.items())
    assert not fresh["a.weight"].equal(params["a.weight"])  # negative control: no state loaded


def test_loading_keeps_the_configured_learning_rate_and_drops_old_state():
    params, optimizer = make()
    empty = optimizer_tensors(optimizer, params)
    assert empty == ({}, {})
    train(params, optimizer, range(2))
    again, other = make(lr=5.0)
    load_optimizer_tensors(other, again, *optimizer_tensors(optimizer, params))
    assert [group["lr"] for group in other.param_groups] == [5.0, 5.0]
    assert [group["weight_decay"] for group in other.param_groups] == [0.0, 0.1]
    load_optimizer_tensors(other, again, *empty)
    assert optimizer_tensors(other, again) == empty


def test_state_of_another_model_is_refused():
    params, optimizer = make()
    train(params, optimizer, range(1))
    tensors, steps = optimizer_tensors(optimizer, params)
    key = "a.weight.exp_avg"
    bad_states = {
        r"unmatched \['a.weight.exp_avg'\]": (
            {name: t for name, t in tensors.items() if name != key},
            steps,
        ),
        r"unmatched \['stranger'\]": ({**tensors, "stranger": torch.zeros(1)}, steps),
        r"unmatched \['c', ": (tensors, {**steps, "c": 1}),
        r"a.weight.exp_avg: found .*\[3\]": ({**tensors, key: torch.zeros(3)}, steps),
        r"a.weight.exp_avg: found \(torch.bfloat16": (
            {**tensors, key: tensors[key].bfloat16()},
            steps,
        ),
    }
    for message, state in bad_states.items():
        with pytest.raises(CheckpointError, match=message):
            load_optimizer_tensors(optimizer, params, *state)
