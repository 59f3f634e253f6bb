"""Plans at full size on every machine of conf/hardware, and what is said where one does not fit."""

from __future__ import annotations

import json
import time

import pytest
import torch

from trainer.flops import BACKWARD, forward_flops
from trainer.memory import GIB, activation_bytes
from trainer.plan.__main__ import main
from trainer.plan.costs import Cost, Prices, phases
from trainer.plan.fake import why_no_cuda
from trainer.plan.meter import Record
from trainer.plan.plan import as_json, make_plan, memory_of
from trainer.plan.settings import CONF
from trainer.plan.walk import Unit

PAPER = ("+experiment=l1_exact", "scale=paper")
STEPS = 80
SMALL = (
    "+experiment=l1_exact",
    "scale=embedded",
    "hardware=1xcpu",
    "rollout.prompts=8",
    f"train.steps={STEPS}",
)
PARAMETERS = 1_777_088_000
needs_fakes = pytest.mark.skipif(why_no_cuda() is not None, reason=str(why_no_cuda()))


@pytest.fixture(scope="module")
def paper():
    start = time.process_time()
    plan = make_plan([*PAPER, "hardware=8xh100", "price_per_hour=2"])
    return plan, time.process_time() - start


@needs_fakes
def test_the_paper_on_8_h100(paper):
    plan, seconds = paper
    walk = plan.memory.walk
    assert seconds < 60
    assert walk.parameters == PARAMETERS
    for parts in walk.memory.values():
        assert parts["masters"] == 4 * PARAMETERS // 8 and parts["working copy"] == 2 * PARAMETERS
        assert parts["moments"] == pytest.approx(8 * PARAMETERS // 8, abs=4096)
    assert walk.memory["update"]["gradients"] == 4 * PARAMETERS // 8
    cache = (walk.pages + 1) * 28_672 * 256  # a few rows' state comes on top
    assert walk.memory["rollout"]["KV pages"] == pytest.approx(cache, rel=1e-5)
    asked = plan.memory.asked
    tokens = walk.batch.work.tokens
    kept = activation_bytes(asked.model, tokens, torch.bfloat16, walk.recomputed)
    assert walk.memory["update"]["activations"] == pytest.approx(kept, rel=0.1)
    assert plan.memory.fits and plan.changes == []
    assert plan.step_floor < plan.step_seconds
    assert plan.dollars == 2 * 8 * plan.hours


@needs_fakes
def test_flops_are_those_of_the_formula(paper):
    plan, _ = paper
    walk, model = plan.memory.walk, plan.memory.asked.model
    once = forward_flops(model, walk.batch.work)
    assert sum(r.flops for r in walk.logprob.records) == pytest.approx(once, rel=1e-3)
    update = sum(r.flops for r in walk.update.records) / once
    again = walk.recomputed / model.num_hidden_layers  # flash's backward pass makes scores again
    assert 1 + BACKWARD < update < 1 + BACKWARD + again + 0.1
    drawn = sum(c.flops for c in plan.phases["decode"] + plan.phases["prefill"])
    model_flops = sum(forward_flops(model, d.rollout.work) for d in plan.memory.demands)
    assert drawn == pytest.approx(model_flops, rel=0.02)


@needs_fakes
@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ("1xh100", ()),
        ("1xa100-40", ("rollout.pages=", "memory.activations=full", "train.micro_batch_tokens=")),
        ("1x4090", ("train.parallel=fsdp", "hardware.gpus=", "rollout.pages=")),
    ],
)
def test_what_would_fit_is_planned_again(hardware, expected):
    plan = make_plan([*PAPER, f"hardware={hardware}"])
    assert plan.memory.fits == (not expected)
    assert all(any(c.startswith(key) for c in plan.changes) for key in expected)
    if expected:
        assert plan.changed.memory.fits and plan.changed.changes == []
        assert 0 < plan.changed.step_seconds < 1e5


def test_on_this_cpu(capsys, tmp_path):
    files = [f"json={tmp_path / 'plan.json'}", f"png={tmp_path / 'plan.png'}"]
    assert main([*SMALL, "price_per_hour=1", *files]) == 0
    shown = capsys.readouterr().out
    assert "memory: fits" in shown and "price: " in shown and "masters" in shown
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] and found["phases"]["update"][0]["seconds"] > 0
    assert found["hours"] * 3600 == pytest.approx(
        STEPS * found["step_seconds"] + found["evaluation_seconds"] * found["evaluations"]
    )
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_nothing_fits_a_tiny_machine(capsys):
    assert main([*SMALL, "hardware.memory_gib=0.001"]) == 1
    assert "a smaller model" in capsys.readouterr().out
    assert main(["hardware=none"]) == 2
    assert "hardware: 'none'" in capsys.readouterr().err
    assert main([]) == 0 and "price_per_hour" in capsys.readouterr().out


def test_fewer_pages_and_smaller_passes_are_enough():
    """On the CPU: between what the weights take and what is asked for."""
    memory = memory_of(SMALL)
    need = memory.total("rollout") / GIB
    plan = make_plan([*SMALL, f"hardware.memory_gib={0.7 * need}", "hardware.usable=1.0"])
    assert not plan.memory.fits and plan.changed.memory.fits
    assert any(change.startswith("rollout.pages=") for change in plan.changes)


def test_fsdp_divides_what_it_says():
    options = [*SMALL, "hardware.gpus=4", "hardware.memory_gib=10"]
    whole = memory_of([*options, "train.parallel=replicated"]).walk.memory["update"]
    parts = memory_of([*options, "train.parallel=fsdp"]).walk.memory["update"]
    for part in ("masters", "moments", "gradients"):
        assert parts[part] == whole[part] // 4
    for part in ("reference", "activations"):
        assert parts[part] == whole[part]


def test_costs_by_hand():
    four = ("hardware.gpus=4", "hardware.memory_gib=10", "train.parallel=fsdp")
    memory = memory_of([*SMALL, *four])
    asked = memory.asked
    prices = Prices(asked, memory.walk)
    full, traffic = prices.peak.full, prices.peak.memory
    records = [
        Record("product", torch.float32, 2 * full, traffic),  # 2 s of arithmetic
        Record("rows", torch.float32, 0, 3 * traffic),  # 3 s of memory
        Record("attention", torch.float32, full, 0),
    ]
    cost = prices.of(Unit(records, 1000))
    share = asked.hardware
    assert cost.floor == pytest.approx(2 + 3 + 1)
    device = 2 / share.product + 3 / share.memory + 1 / share.attention
    assert cost.device == pytest.approx(device) == cost.seconds
    assert cost.host == pytest.approx(1000 * share.host_us * 1e-6)
    assert Cost(host=2.0, device=1.0).seconds == 2.0
    moved = prices.exchange(2).bytes
    assert moved == pytest.approx(0.75 * memory.walk.parameters * (2 * (2 * 4 + 4) + 4))
    costs = phases(asked, memory.walk, memory.demands)
    assert {len(found) for found in costs.values()} == {4}


def test_graphs_take_the_host_out_of_decoding():
    graphs = "rollout.cuda_graphs=true"
    slow = "hardware.host_us=5000"
    seconds = [
        make_plan([*SMALL, slow, *more]).phases["decode"][0].seconds for more in ([], [graphs])
    ]
    assert seconds[1] < seconds[0] / 5


@pytest.mark.parametrize("name", sorted(f.stem for f in (CONF / "hardware").glob("*.yaml")))
def test_every_machine_plans_the_small_model(name):
    if name != "1xcpu" and why_no_cuda():
        pytest.skip(why_no_cuda())
    plan = make_plan(["+experiment=l1_exact", "scale=embedded", f"hardware={name}"])
    assert plan.memory.fits and as_json(plan)["hardware"] == name
