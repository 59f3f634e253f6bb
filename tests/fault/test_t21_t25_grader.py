"""T21, T23, T24, T25 for both tiers: reasons, what the symbolic tier may decide, and the alarm."""

from __future__ import annotations

import dataclasses
import logging
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_config, tiny_trainer
from trainer import lcpo, preflight, step
from trainer.config import ConfigError
from trainer.grading import REASONS, UNGRADED
from trainer.grading import grader as grader_module
from trainer.grading import pool as pool_module
from trainer.grading.grader import Grader, is_exact, undecided
from trainer.grading.parse import parse
from trainer.grading.pool import WorkerPool
from trainer.types import Completion, Problem, Prompt, Rollout, Score

STUB = "tests.fault.stub_worker"
FORMULA = Problem("p", "?", ("x^2+1",))
EQUAL = "(x+1)^2-2x"  # to the stub and to math-verify, not to the exact tier


class FakePool:
    """Verdicts by answer, and what was asked."""

    def __init__(self, **verdicts: str) -> None:
        self.verdicts, self.asked, self.left = verdicts, [], {}

    def submit(self, key, answer, truths) -> None:
        self.asked.append((answer, truths))
        self.left[key] = self.verdicts.get(answer, "different")

    def collect(self, on_wait) -> dict[int, str]:
        on_wait(len(self.left))
        found, self.left = self.left, {}
        return found


def box(answer: str) -> str:
    return rf"so</think>\boxed{{{answer}}}"


def grade_all(grader: Grader, *answers: str, problem: Problem = FORMULA) -> list[str]:
    for key, answer in enumerate(answers):
        grader.submit(key, box(answer), problem)
    scores = grader.collect()
    assert all(s.reason in REASONS and s.value == (s.reason == "correct") for s in scores.values())
    return [scores[key].reason for key in range(len(answers))]


# The two tiers --------------------------------------------------------------------------------


def test_without_a_pool_the_exact_tier_has_the_last_word() -> None:
    grader = Grader()
    assert grade_all(grader, "1+x^2", EQUAL) == ["correct", "wrong"]
    assert grader.collect() == {}


def test_only_what_is_wrong_is_asked() -> None:
    pool = FakePool(a="same", b="timeout", c="crashed")
    grader = Grader(pool=pool, alarm_share=1.0)
    found = grade_all(grader, "x^2+1", "a", "b", "c", "d", "", "1" * 1_001)
    assert found == ["correct", "correct", "timeout", "crashed", "wrong", "wrong", "too_long"]
    assert [answer for answer, _ in pool.asked] == ["a", "b", "c", "d"]
    grader.submit(0, "no tag", FORMULA)
    grader.submit(1, "</think>none", FORMULA)
    assert [s.reason for s in grader.collect().values()] == ["no_think", "no_answer"]
    choice = Problem("p", "q", ("B",), "choice")
    assert grade_all(grader, "C", problem=choice) == ["wrong"]
    assert len(pool.asked) == 4


DECIDED = ["17", r"\frac12", r"2\sqrt3", r"10\%", r"(3,\frac{\pi}{2})", r"\infty", "1,-2"]
DECIDED += [r"[0,1)\cup(2,3)", r"\{1\pm\sqrt5\}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "6-5i"]
OPEN = ["x^2+1", r"\frac{1}{1+\sqrt2}", r"\log_2 3", "2^{10}", "y=2x+1", r"x\le 3", "(x,2)"]
WORDS = [r"\text{Evelyn}", "ABCD", "east", "B, A", "x", "52_8"]


@pytest.mark.parametrize("truth", DECIDED + OPEN + WORDS)
def test_the_symbolic_tier_is_asked_only_where_the_exact_one_cannot_decide(truth: str) -> None:
    """Computing is not answering: 3+14 must not be paid where 17 is the truth."""
    asked = undecided("3+14", Problem("p", "q", (truth,)))
    assert asked == ((truth,) if truth in OPEN else ())
    assert is_exact(parse(truth).value) == (truth in DECIDED)


def test_the_question_is_not_an_answer() -> None:
    """T25: boxing the question's own expression is not paid by a tier that computes."""
    problem = Problem("p", r"Expand $ (x+1) \left( x+2 \right)$.", ("x^2+3x+2",))
    assert undecided("(x+1)(x+2)", problem) == ()
    assert undecided("(x+2)(x+1)", problem) == problem.answers


# What cannot be graded ------------------------------------------------------------------------


@pytest.fixture
def stub() -> Iterator[Grader]:
    pool = WorkerPool(STUB, workers=2, timeout_seconds=1.5, memory_mib=512)
    pool.start()
    yield Grader(pool=pool, alarm_share=0.4)
    pool.close()


def test_t21_a_right_answer_is_right_after_hostile_ones(stub: Grader, caplog) -> None:
    hostile = ("hang", "memory", "exit", "garbage", "kill")
    reasons = grade_all(stub, *hostile, EQUAL, "no")
    assert reasons == ["timeout", "crashed", "crashed", "crashed", "crashed", "correct", "wrong"]
    assert "5 of 7 samples could not be graded" in caplog.text
    caplog.clear()
    assert grade_all(stub, "segfault", EQUAL, EQUAL) == ["crashed", "correct", "correct"]
    assert caplog.text == ""  # a third is below alarm_share


def test_samples_are_graded_while_others_decode(stub: Grader) -> None:
    """Its answer comes by itself, before anybody asks the pool for it."""
    stub.submit(0, box("slow"), FORMULA)
    (worker,) = [worker for worker in stub.pool._workers if worker.question]
    assert select.select([worker.process.stdout], [], [], 30)[0]
    assert stub.collect()[0].reason == "wrong"


def rollouts(reasons: list[str], lengths: list[int]) -> list[Rollout]:
    prompt = Prompt(3, FORMULA, "exact", 10, (1, 2))
    found = []
    for k, (reason, size) in enumerate(zip(reasons, lengths, strict=True)):
        score = Score(float(reason == "correct"), reason, "x")
        found.append(Rollout(prompt, k, Completion([7] * size, [-0.5] * size, False), "", score))
    return found


def advantage(config, reasons: list[str], lengths: list[int], estimator: str) -> torch.Tensor:
    algorithm = dataclasses.replace(config.algorithm, estimator=estimator)
    sizes = torch.tensor(lengths, dtype=torch.int32)
    return lcpo.advantages(rollouts(reasons, lengths), sizes, config.reward, algorithm).advantage


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_t25_what_was_not_graded_has_no_advantage(estimator: str, tiny_base: Path) -> None:
    config = tiny_config(tiny_base, tiny_base / "run")
    lengths = [5, 9, 14, 20]
    for reason in UNGRADED:
        assert not advantage(config, [reason] * 4, lengths, estimator).any()
    assert advantage(config, ["wrong"] * 4, lengths, estimator).any()  # their lengths differ
    mixed = advantage(config, ["correct", "timeout", "wrong", "crashed"], lengths, estimator)
    without = advantage(config, ["correct", "wrong"], [5, 14], estimator)
    assert torch.equal(mixed[[0, 2]], without) and not mixed[[1, 3]].any()


def test_t25_a_step_of_timeouts_has_zero_gradient_and_an_alarm(
    tiny_base: Path, caplog, monkeypatch
) -> None:
    trainer = tiny_trainer(
        tiny_base, "algorithm.kl_coef=0", "algorithm.entropy_coef=0", "optim.weight_decay=0"
    )
    # The tiny model's text is noise: it is read as an answer that the exact tier calls wrong.
    monkeypatch.setattr(grader_module, "grade", lambda *_, **__: Score(0.0, "wrong", "x^3"))
    monkeypatch.setattr(grader_module, "undecided", lambda *_: ("x^2+1",))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    for verdict, reason in (("timeout", "timeout"), ("different", "wrong")):
        trainer.grader = Grader(pool=AnyPool(verdict), alarm_share=0.5)
        caplog.clear()
        stats = step.train_step(trainer)
        assert stats.metrics[f"reason/{reason}"] == 1.0
        assert ("ALARM: 12 of 12 samples" in caplog.text) == (verdict == "timeout")
        after = [p.detach() for p in trainer.model.parameters()]
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert moved == (verdict == "different")


class AnyPool(FakePool):
    """One verdict for every answer."""

    def __init__(self, verdict: str) -> None:
        super().__init__()
        self.verdict = verdict

    def submit(self, key, answer, truths) -> None:
        self.left[key] = self.verdict


# Pre-flight -----------------------------------------------------------------------------------


def test_without_math_verify_the_extra_is_named(tiny_base, monkeypatch) -> None:
    config = tiny_config(tiny_base, tiny_base / "run", "grading.symbolic=true")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^grading\.symbolic: .*lcpo-trainer\[symbolic\]"):
        preflight.build_grader(config.grading, True)
    exact = tiny_config(tiny_base, tiny_base / "run").grading
    assert preflight.build_grader(exact, True).pool is None


def test_memory_too_small_for_a_worker_is_refused(tiny_base, monkeypatch) -> None:
    changes = ("grading.symbolic=true", "grading.memory_mib=16")
    config = tiny_config(tiny_base, tiny_base / "run", *changes)
    monkeypatch.setattr(preflight, "find_spec", lambda name: object())
    # Three are too many; a fourth may have ended before the pool looks at the third.
    with pytest.raises(ConfigError, match=r"^grading\.symbolic: [34] grading workers in a row"):
        preflight.build_grader(config.grading, True)


# The tier itself, where it is installed -------------------------------------------------------

HOSTILE = ["9**9**9", "9^{9^{9^{9^{9}}}}", "99999999!", "(10^9)!", "(" * 400 + "x" + ")" * 400]
HOSTILE += ["{" * 450 + "x" + "}" * 450, "__import__('os').system('touch HACKED')", "\ud800x\0"]
HOSTILE += ["().__class__.__bases__[0].__subclasses__()", r"\input{/etc/passwd}", "9" * 900]
HOSTILE += [r"\int_0^{10^9} x^{x^x} dx", r"\sum_{k=1}^{10^{9}} \frac{1}{k}", "Matrix([[1]])"]


@pytest.fixture(scope="module", params=["python", "gmpy"])
def real(request) -> Iterator[Grader]:
    """With sympy's integers of Python, and of gmpy2, whose powers hold the interpreter's lock."""
    pytest.importorskip("math_verify", reason="the symbolic extra is not installed")
    if request.param == "gmpy":
        pytest.importorskip("gmpy2", reason="gmpy2 is not installed")
    numbers = {"SYMPY_GROUND_TYPES": request.param}
    if request.param == "python":
        numbers["MPMATH_NOGMPY"] = "1"
    environment = pool_module._environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "_environment", lambda: environment() | numbers)
        pool = WorkerPool(
            "trainer.grading.symbolic", workers=1, timeout_seconds=5.0, memory_mib=1024
        )
        pool.start()
        yield Grader(pool=pool, alarm_share=1.0)
        pool.close()


@pytest.mark.parametrize("answer", HOSTILE)
def test_t21_t23_math_verify_on_hostile_answers(real: Grader, answer: str) -> None:
    started = time.monotonic()
    first, second = grade_all(real, answer, EQUAL)
    assert first in ("wrong", *UNGRADED) and second == "correct"
    assert time.monotonic() - started < 60
    assert not list(Path(real.pool._folder.name).glob("HACKED"))


def test_math_verify_on_answers(real: Grader) -> None:
    assert grade_all(real, EQUAL, "x^2+2", "x^2-1", "y^2+1") == [
        "correct", "wrong", "wrong", "wrong",
    ]  # fmt: skip


def test_the_alarm_is_an_error_in_the_log(caplog) -> None:
    with caplog.at_level(logging.ERROR):
        grade_all(Grader(pool=FakePool(a="timeout"), alarm_share=0.0), "a", "b")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "1 of 2 samples" in record.getMessage()
