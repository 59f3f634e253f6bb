"""Runs of two processes: resumed by one and the other way round, stopped, failing, killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import command, result, run_here
from tests.ranks import call_ranks, load_and_collect, run_ranks
from trainer.checkpoint import find_checkpoint
from trainer.record import EVALUATIONS, METRICS, SAMPLES, read_rows

STEPS = 4
QUIET = (f"train.steps={STEPS}", "checkpoint.every=100", "evaluate.every=2")
FSDP = (*QUIET, "train.parallel=fsdp")


@pytest.fixture(scope="module")
def straight(tiny_base, tmp_path_factory) -> Path:
    """The folder of a run of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    run_here(tiny_base, folder, *QUIET)
    return folder


@pytest.fixture(scope="module")
def of_two(tiny_base, tmp_path_factory) -> Path:
    """The folder of a run of two processes, divided, that nothing interrupted."""
    folder = tmp_path_factory.mktemp("of-two")
    done = run_ranks(folder, command(tiny_base, folder / "run", *FSDP))
    assert [d.code for d in done] == [0, 0], done
    first, second = (d.output for d in done)
    assert "\ncontinue: torchrun --nproc-per-node=2 -m trainer.run scale=embedded " in first
    assert "done: " in first and "step 1/" in first
    assert not any(word in second for word in ("scale: ", "run folder", "step 1/", "done: "))
    return folder / "run"


def assert_alike(found: Path, expected: Path) -> None:
    """Rows and samples of the same steps; numbers but for the order of sums."""
    for name in (METRICS, SAMPLES, EVALUATIONS):
        rows, theirs = read_rows(found / name), read_rows(expected / name)
        assert [row["step"] for row in rows] == [row["step"] for row in theirs]
    texts = [[row["text"] for row in read_rows(path / SAMPLES)] for path in (found, expected)]
    same = sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])
    assert same > 0.9  # a draw may fall to the other side of a threshold
    for file, gap in (("model", 1e-3), ("optim", 1e-2)):
        mine, theirs = (
            load_file(find_checkpoint(path / "checkpoints") / f"{file}.safetensors")
            for path in (found, expected)
        )
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0.0, atol=gap)


def test_two_processes_leave_what_one_leaves(of_two, straight):
    assert_alike(of_two, straight)
    files = [
        sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file())
        for run in (of_two, straight)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("parallel", ["replicated", "fsdp"])
def test_one_two_and_one_again(parallel, straight, tiny_base, tmp_path):
    run = tmp_path / "run"
    run_here(tiny_base, run, *QUIET, "train.steps=1")
    more = (*QUIET, f"train.parallel={parallel}", "train.steps=3")
    done = run_ranks(tmp_path, command(tiny_base, run, *more))
    assert [d.code for d in done] == [0, 0], done
    assert "behind step 1" in done[0].output
    run_here(tiny_base, run, *QUIET)
    rows = read_rows(run / METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, expected in zip(rows, read_rows(straight / METRICS), strict=True):
        for name in ("policy/loss", "reward/mean", "optim/grad_norm"):
            assert row["metrics"][name] == pytest.approx(expected["metrics"][name], rel=0.05)


def test_a_checkpoint_comes_out_as_it_went_in(straight, tiny_base, tmp_path):
    """Bit for bit, through two and three ranks that divide it: rows that do not split evenly."""
    checkpoint = find_checkpoint(straight / "checkpoints")
    expected = {
        name: tensor
        for file in ("model", "optim")
        for name, tensor in load_file(checkpoint / f"{file}.safetensors").items()
    }
    for size in (2, 3):
        call_ranks(tmp_path, size, load_and_collect, tiny_base, checkpoint, *FSDP)
        found = load_file(tmp_path / f"state-{size}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_signal_to_one_rank_stops_all(stopped, of_two, tiny_base, tmp_path):
    """In the update of step 3: it is finished, saved once, and the run goes on bit for bit."""
    arguments = command(tiny_base, tmp_path / "run", *FSDP)
    at = {stopped: ("update", 2, (int(signal.SIGTERM),))}
    done = run_ranks(tmp_path, arguments, signal_at=at)
    assert [d.code for d in done] == [0, 0], done
    assert "behind step 3 of 4; saved: " in done[0].output
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["step-00000003"]
    done = run_ranks(tmp_path, arguments)
    assert [d.code for d in done] == [0, 0], done
    assert result(tmp_path / "run") == result(of_two)


def test_a_signal_during_rollouts_leaves_the_step(tiny_base, tmp_path):
    at = {1: ("rollout", 1, (int(signal.SIGTERM),))}
    done = run_ranks(tmp_path, command(tiny_base, tmp_path / "run", *QUIET), signal_at=at)
    assert [d.code for d in done] == [0, 0], done
    assert "behind step 1 of " in done[0].output


def test_a_killed_rank_ends_the_others(tiny_base, tmp_path):
    at = {1: ("update", 1, (int(signal.SIGKILL),))}
    done = run_ranks(tmp_path, command(tiny_base, tmp_path / "run", *FSDP), signal_at=at)
    assert [d.code for d in done] == [1, -signal.SIGKILL], done
    assert "RankError: no word from rank 1: killed, or its machine is gone" in done[0].output


def test_a_failure_is_told_to_the_others(straight, tiny_base, tmp_path):
    """Only rank 0 looks for checkpoints, so this refusal is its own."""
    arguments = command(tiny_base, straight, *QUIET, "resume=never")
    done = run_ranks(tmp_path, arguments)
    assert [d.code for d in done] == [1, 1], done
    assert done[0].output.count("ConfigError: resume: never, but") == 1
    assert "rank 1: RankError: " in done[1].output


def test_what_a_rank_said_is_passed_on(tiny_base, tmp_path):
    """The other way round: rank 1 fails alone, by a model folder that is broken for it."""
    done = run_ranks(
        tmp_path,
        command(tiny_base, tmp_path / "run", *QUIET),
        fail_at={1: ("update", 1)},
    )
    assert [d.code for d in done] == [1, 1], done
    assert "RankError: rank 1: FloatingPointError: on purpose" in done[0].output
    assert "rank 1: FloatingPointError: on purpose" in done[1].output
