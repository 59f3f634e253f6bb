"""Two ranks do what one does: the same samples, gradients and losses, however memory is divided."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

import kernels
from tests.helpers import gradient_distance, one_thread, tiny_trainer
from tests.ranks import call_ranks, take_steps, taken
from trainer import step
from trainer.exchange import Drawn, rank_metrics, rank_timing
from trainer.packing import deal, micro_batches, nothing_to_train
from trainer.rollout import RolloutStats
from trainer.signals import Stopped
from trainer.types import Advantages
from trainer.world import ALONE, Muted, World

ENTROPY = ("algorithm.entropy_coef=0.01",)
# One group, one micro-batch: the second rank draws nothing and trains nothing.
ONE = (*ENTROPY, "rollout.prompts=1", "algorithm.updates=1", "train.share_prompts=true")
CASES = {
    "replicated": (*ENTROPY, "train.parallel=replicated"),
    "fsdp": (*ENTROPY, "train.parallel=fsdp"),
    "recomputed": (*ENTROPY, "train.parallel=fsdp", "memory.activations=full"),
    "replicated-one": (*ONE, "train.parallel=replicated", "train.micro_batch_tokens=1000"),
    "fsdp-one": (*ONE, "train.parallel=fsdp", "train.micro_batch_tokens=1000"),
    "bfloat16-replicated": (*ENTROPY, "train.parallel=replicated", "model.dtype=bfloat16"),
    "bfloat16-fsdp": (*ENTROPY, "train.parallel=fsdp", "model.dtype=bfloat16"),
}


@pytest.fixture(scope="module")
def folder(tiny_base, tmp_path_factory) -> Path:
    """What take_steps leaves for one rank and for two."""
    folder = tmp_path_factory.mktemp("ranks")
    with one_thread():
        take_steps(ALONE, folder, tiny_base, CASES)
    call_ranks(folder, 2, take_steps, tiny_base, CASES)
    return folder


@pytest.mark.parametrize("case", [name for name in CASES if "bfloat16" not in name])
def test_two_ranks_have_the_gradients_of_one(case, folder):
    (one, of_one), (two, of_two) = (taken(folder, case, size) for size in (1, 2))
    assert one["samples"] == two["samples"] and one["groups"] == two["groups"]
    assert of_one.keys() == of_two.keys()
    assert gradient_distance(of_one.values(), (of_two[name] for name in of_one)) < 1e-6
    for mine, theirs in zip(one["metrics"], two["metrics"], strict=True):
        names = mine.keys() - {k for k in mine if k.startswith(("packing/", "ranks/", "rollout/"))}
        assert {k: theirs[k] for k in names} == pytest.approx(
            {k: mine[k] for k in names}, rel=1e-3, abs=1e-5
        )
    first = "policy/loss", "policy/entropy", "reward/mean"  # before Adam makes much of little
    for name in first:
        assert two["metrics"][0][name] == pytest.approx(one["metrics"][0][name], rel=1e-5)


def test_divided_masters_compute_in_bfloat16_as_a_working_copy_does(folder):
    """On the same micro-batches. The working copy's gradients of linear layers and of the embedding
    are never rounded, divided ones once, to 8 bits; others differ in the order of sums."""
    (one, kept), (two, divided) = (
        taken(folder, f"bfloat16-{parallel}", 2) for parallel in ("replicated", "fsdp")
    )
    assert one["samples"][0] == two["samples"][0]
    assert {g.dtype for g in divided.values()} == {torch.float32}
    for name, gradient in kept.items():  # each by itself: those of q and k are the smallest
        rounding = 1e-5 if "norm" in name else 2**-8
        assert (gradient - divided[name]).abs().max() < rounding * gradient.abs().max(), name
    first, other = (found["metrics"][0] for found in (one, two))
    for name, rel in (("policy/entropy", 1e-3), ("policy/rollout_gap_mean", 1e-6)):
        assert first[name] == pytest.approx(other[name], rel=rel)  # the gap is before any update


def test_a_rank_without_a_micro_batch_takes_part(folder):
    found = taken(folder, "fsdp-one", 2)[0]["metrics"][0]
    assert found["packing/micro_batches"] == 2 and found["ranks/update_imbalance"] > 0.9
    assert found["ranks/rollout_imbalance"] == 1.0  # one of two has drawn all
    assert taken(folder, "fsdp-one", 1)[0]["metrics"][0]["packing/micro_batches"] == 1


@pytest.mark.parametrize("backend", ["torch", "the automatic one"])
def test_nothing_to_train_has_zero_gradients(backend, tiny_base):
    """No sequence and no row reaches the loss; every op must bear that, compiled ones too."""
    trainer = tiny_trainer(tiny_base)
    advantages = Advantages(*(torch.ones(3),) * 4)
    with kernels.override("torch") if backend == "torch" else contextlib.nullcontext():
        for first in (True, False):
            micro = step.with_old_logprobs(trainer, nothing_to_train("cpu"), [], first)
            loss, stats = step.policy_loss(trainer, micro, advantages)
            loss.backward()
            assert (loss.item(), stats.tokens.item(), len(micro.old)) == (0.0, 0.0, 0)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_ranks_have_as_many_micro_batches():
    lengths = [30, 20, 20, 10, 10, 5, 5]
    alone = micro_batches([1] * 7, lengths, None, 40, lambda work: work.tokens)
    assert len(alone) == 3
    for ranks in (2, 4, 8):
        cut = micro_batches([1] * 7, lengths, None, 40, lambda work: work.tokens, ranks)
        assert len(cut) % ranks == 0 and sorted(i for batch in cut for i in batch) == [*range(7)]
    assert [] in cut  # eight for seven sequences


def test_deal_by_hand():
    assert deal([5, 1, 3, 3], 1) == [[0, 1, 2, 3]]
    assert deal([5, 1, 3, 3], 2) == [[0, 1], [2, 3]]
    assert deal([2, 2], 3) == [[0], [1], []]
    assert deal([], 2) == [[], []]


def test_imbalance_by_hand():
    drawn = [Drawn(300, 4.0, RolloutStats()), Drawn(100, 1.0, RolloutStats())]
    assert rank_metrics(drawn, [], None) == {
        "ranks/rollout_imbalance": 0.5, "ranks/update_imbalance": 0.0,
    }  # fmt: skip
    assert rank_timing(drawn) == {"ranks/rollout_waiting": 0.375}


def test_alone_nothing_is_exchanged():
    item = object()
    assert ALONE.gather(item) == [item] and ALONE.tell(item) is item and ALONE.leads
    tensor = torch.ones(2)
    ALONE.meet([tensor])
    assert tensor.tolist() == [1, 1] and not torch.distributed.is_initialized()
    with ALONE.together():
        pass
    with pytest.raises(Stopped), ALONE.together():
        raise Stopped
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError
    with Muted() as nobody:
        assert nobody.anything(1, two=2) is None


def exchange(world: World, folder: Path) -> None:
    """What each rank of three checks for itself."""
    tensor = torch.full((3,), 10.0**world.rank)
    world.meet([tensor, torch.zeros(0)])
    assert tensor.tolist() == [111.0] * 3
    assert world.gather({"rank": world.rank}) == [{"rank": r} for r in range(3)]
    assert world.tell(f"from {world.rank}") == "from 0"
    with world.together():
        pass
    with pytest.raises(Stopped), world.together():
        if world.rank == 1:
            raise Stopped
    assert world.gather(1) == [1, 1, 1]  # nobody has run ahead


def test_three_ranks_exchange(tmp_path):
    call_ranks(tmp_path, 3, exchange)
