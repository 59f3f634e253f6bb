"""What a step is planned to ask for is what the engine and the packing of a run would do."""

from __future__ import annotations

from statistics import mean

import pytest

from tests.helpers import tiny_decoder
from trainer.config import ConfigError
from trainer.flops import forward_flops
from trainer.plan.demand import demands, make_engine, requests, response_lengths, simulate
from trainer.plan.settings import read_asked
from trainer.rollout import Sampling

PAPER = ("+experiment=l1_exact", "scale=paper")
SMALL = ("+experiment=l1_exact", "scale=embedded", "hardware=1xcpu", "prompt_tokens=7")


def test_lengths_follow_the_budgets():
    asked = read_asked(PAPER)
    lengths = response_lengths(asked)
    assert len(lengths) == 128 and mean(lengths) == pytest.approx(2050, rel=0.01)
    assert min(lengths) < 300 and 3700 < max(lengths) <= 4096
    asked = read_asked([*PAPER, "response_tokens=3000"])
    assert mean(response_lengths(asked)) == pytest.approx(3000, rel=0.01)
    asked = read_asked([*PAPER, "budget.mode=none"])
    assert mean(response_lengths(asked)) == pytest.approx(2048, rel=0.01)


def test_the_engine_takes_as_many_steps_as_planned():
    asked = read_asked([*SMALL, "rollout.prompts=6", "rollout.samples=3", "rollout.batch_size=5"])
    lengths = [3, 9, 20, 14, 1, 8]
    planned = simulate(asked, lengths)
    engine = make_engine(asked, tiny_decoder())
    engine.eos_id, engine.vocab_size = -1, 300
    engine.generate(requests(asked, lengths, 6), Sampling(1.0))
    assert len(planned.decode) == engine.stats.decode_steps
    assert sum(tokens for tokens, _ in planned.prefill) == engine.stats.prefilled
    # The first token of each sample comes with its prompt; a decode step attends to itself too.
    assert sum(rows for rows, _ in planned.decode) == 3 * sum(n - 1 for n in lengths)
    attended = 3 * sum(sum(range(7 + 1, 7 + n)) for n in lengths)
    assert sum(context for _, context in planned.decode) == attended


def test_every_sample_is_in_one_micro_batch():
    asked = read_asked([*PAPER, "hardware=8xh100"])
    found = demands(asked)
    assert len(found) == 8
    batches = [b for demand in found for update in demand.updates for b in update]
    assert all(b.work.tokens <= asked.config.train.micro_batch_tokens for b in batches)
    assert sum(len(b.responses) for b in batches) == 128 * 16
    drawn = sum(demand.rollout.work.rows for demand in found)
    assert drawn == sum(b.work.rows for b in batches) == 16 * sum(response_lengths(asked))
    # Dealt by cost: no GPU draws or trains a twentieth more than the mean.
    counts = [[len(update) for update in demand.updates] for demand in found]
    assert counts == counts[:1] * 8
    for costs in (
        [demand.rollout.work.rows for demand in found],
        [sum(forward_flops(asked.model, b.work) for u in d.updates for b in u) for d in found],
    ):
        assert max(costs) < 1.05 * mean(costs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hardware=abacus", "hardware: 'abacus' is not one of 1x4090, 1xa100-40"),
        ("hardware.gpus=129", "hardware.gpus: 129 GPUs for rollout.prompts=128"),
        ("hardware.chip=Z80", "hardware.chip: trainer/flops.py states nothing for 'Z80'"),
        ("model.path=runs/nothing", "plan.shape: no config.json at hand for runs/nothing"),
        ("train.parallel=tensor", "train.parallel: 'tensor' is not one of replicated, fsdp"),
        ("price_per_hour=-1", "plan.price_per_hour: must be at least 0"),
        ("prise=2", "prise=2"),
    ],
)
def test_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        read_asked([*PAPER, override])
