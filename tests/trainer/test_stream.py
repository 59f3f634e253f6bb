"""The prompts of a run: pure budgets, exact resumption at every place, over-long ones counted."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from trainer_helpers import make_config

from trainer.config import BudgetSettings, ConfigError
from trainer.data.stream import Cursor, PromptStream, draw_budget
from trainer.embedded.task import make_problem
from trainer.embedded.tokenizer import build_tokenizer
from trainer.grading.grader import Grader
from trainer.seeds import derive_seed
from trainer.step import generate
from trainer.types import Completion

UNIFORM = BudgetSettings(mode="exact", law="uniform", min=12, max=21, skip=None)
LOG = replace(UNIFORM, law="log_uniform")
TOKENIZER = build_tokenizer()
PROBLEMS = tuple(make_problem(0, i, "train") for i in range(12))
CHI_SQUARE = 27.9  # exceeded by one in a thousand with 9 degrees of freedom


def make_stream(problems=PROBLEMS, budget=UNIFORM, seed=0, max_prompt_tokens=64) -> PromptStream:
    return PromptStream(problems, TOKENIZER, budget, seed, max_prompt_tokens)


def take(count, cursor=None, **settings) -> list:
    return make_stream(**settings).take(cursor or Cursor(), count)[0]


def chi_square(counts: Counter, expected: dict[int, float]) -> float:
    return sum((counts[v] - n) ** 2 / n for v, n in expected.items())


# Budgets --------------------------------------------------------------------------------------


def test_budget_is_a_pure_function_of_seed_epoch_and_row():
    cells = list(itertools.product(range(3), range(3), range(40)))
    wide = replace(UNIFORM, min=100, max=4000)
    straight = {cell: draw_budget(wide, *cell) for cell in cells}
    assert {cell: draw_budget(wide, *cell) for cell in reversed(cells)} == straight
    # Each of the three matters: 360 draws from 3901 budgets are nearly all different.
    assert len(set(straight.values())) > 320
    assert draw_budget(wide, 0, 1, 12) != draw_budget(wide, 0, 11, 2)


@pytest.mark.parametrize("settings", [UNIFORM, LOG], ids=["uniform", "log_uniform"])
def test_law_reaches_both_bounds_and_nothing_beyond(settings):
    drawn = {draw_budget(settings, 0, 0, row)[1] for row in range(2000)}
    assert drawn == set(range(12, 22))
    one = replace(settings, min=7, max=7)
    assert {draw_budget(one, 0, 0, row)[1] for row in range(50)} == {7}


@pytest.mark.parametrize("settings", [UNIFORM, LOG], ids=["uniform", "log_uniform"])
def test_skipped_budgets_are_never_drawn_and_the_others_stay(settings):
    skipping = replace(settings, skip=(14, 20))
    drawn = [(draw_budget(settings, 0, 0, r), draw_budget(skipping, 0, 0, r)) for r in range(2000)]
    assert {budget for _, (_, budget) in drawn} == set(range(12, 22)) - {14, 20}
    assert all(a == b for a, b in drawn if a[1] not in (14, 20))


def test_uniform_law():
    counts = Counter(draw_budget(UNIFORM, 0, 0, row)[1] for row in range(5000))
    assert chi_square(counts, dict.fromkeys(range(12, 22), 500)) < CHI_SQUARE


def test_log_uniform_law():
    counts = Counter(draw_budget(LOG, 0, 0, row)[1] for row in range(5000))
    total = math.log(21.5 / 11.5)
    expected = {n: 5000 * math.log((n + 0.5) / (n - 0.5)) / total for n in range(12, 22)}
    assert chi_square(counts, expected) < CHI_SQUARE
    assert chi_square(counts, dict.fromkeys(range(12, 22), 500)) > 2 * CHI_SQUARE


def test_dual_is_half_and_half_and_independent_of_the_budget():
    dual = replace(UNIFORM, mode="dual")
    drawn = [draw_budget(dual, 0, 0, row) for row in range(4000)]
    for low in (12, 17):
        half = [mode for mode, budget in drawn if low <= budget < low + 5]
        assert set(half) == {"exact", "max"}
        assert half.count("exact") / len(half) == pytest.approx(0.5, abs=0.045)


def test_single_modes():
    for mode in ("exact", "max"):
        assert {draw_budget(replace(UNIFORM, mode=mode), 0, 0, r)[0] for r in range(50)} == {mode}
    assert draw_budget(replace(UNIFORM, mode="none"), 0, 0, 3) == ("none", 0)


# Cursor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [(5, 7), (7, 5, 12), (12, 12), (11, 1, 1, 11), (30, 6), (1,) * 30],
    ids=["mid-epoch", "to the end", "whole epochs", "over the end", "two epochs", "one by one"],
)
def test_a_resumed_run_asks_what_the_uninterrupted_one_does(sizes):
    """T6: a new stream at each stop knows nothing but the cursor."""
    cursor, pieces = Cursor(), []
    for size in sizes:
        prompts, cursor, _ = make_stream().take(cursor, size)
        assert len(prompts) == size
        pieces += prompts
    assert pieces == take(sum(sizes))


def test_taking_leaves_the_stream_as_it_was():
    """A skipped or repeated step: only the cursor decides, also with the order of another epoch."""
    stream = make_stream()
    first = stream.take(Cursor(), 5)
    stream.take(Cursor(3, 4), 20)
    assert stream.take(Cursor(), 5) == first


def test_cursor_at_the_end_of_an_epoch_goes_on_with_the_next():
    _, cursor, _ = make_stream().take(Cursor(), 12)
    assert cursor == Cursor(0, 12)
    (prompt,), cursor, _ = make_stream().take(cursor, 1)
    assert cursor == Cursor(1, 1)
    assert prompt == take(1, Cursor(1, 0))[0]


def test_an_epoch_is_every_problem_once_in_its_own_order():
    epochs = [[p.problem.id for p in take(12, Cursor(epoch))] for epoch in range(3)]
    assert all(sorted(ids) == sorted(p.id for p in PROBLEMS) for ids in epochs)
    assert len({tuple(ids) for ids in epochs}) == 3
    assert [p.problem.id for p in take(12, seed=1)] != epochs[0]


def test_a_problem_met_again_is_another_group_with_its_own_budget():
    prompts = take(36, budget=replace(UNIFORM, min=100, max=4000))
    assert len({p.group for p in prompts}) == 36
    for problem in PROBLEMS:
        met = [p for p in prompts if p.problem == problem]
        assert len(met) == 3 and len({p.budget for p in met}) > 1


def test_prompt_says_its_own_budget():
    for prompt in take(24, budget=replace(UNIFORM, mode="dual")):
        word = "maximum " if prompt.mode == "max" else ""
        text = TOKENIZER.decode(prompt.token_ids)
        assert f"{prompt.problem.question} Let's" in text
        assert f" Think for {word}{prompt.budget} tokens." in text


# Over-long prompts ----------------------------------------------------------------------------


def test_over_long_prompts_are_dropped_and_counted():
    long = replace(PROBLEMS[3], question="+".join(["25"] * 40) + "=?")
    problems = (*PROBLEMS[:3], long, *PROBLEMS[4:])
    prompts, cursor, dropped = make_stream(problems).take(Cursor(), 22)
    assert dropped == 2 and cursor == Cursor(1, 12)
    assert {p.problem.id for p in prompts} == {p.id for p in problems} - {long.id}
    assert prompts[:11] == [p for p in take(12) if p.problem.id != long.id]  # the rest is as it was


def test_a_prompt_of_exactly_the_limit_fits():
    length = len(take(1)[0].token_ids)
    first = (take(1)[0].problem,)
    one = replace(UNIFORM, max=12)
    assert make_stream(first, one, max_prompt_tokens=length).take(Cursor(), 1)[2] == 0
    with pytest.raises(ConfigError):
        make_stream(first, one, max_prompt_tokens=length - 1).take(Cursor(), 1)


def test_few_fitting_prompts_are_enough():
    """One of twelve fits: eleven are dropped each epoch, and that is no reason to give up."""
    question = "+".join(["25"] * 40) + "=?"
    problems = (PROBLEMS[0], *(replace(p, question=question) for p in PROBLEMS[1:]))
    prompts, _, dropped = make_stream(problems).take(Cursor(), 5)
    assert {p.problem for p in prompts} == {PROBLEMS[0]} and 44 <= dropped <= 55


def test_nothing_fits_is_an_error_naming_the_setting():
    with pytest.raises(ConfigError, match=r"data\.max_prompt_tokens.*12 problems.*5 tokens"):
        take(1, max_prompt_tokens=5)


# Groups and seeds -----------------------------------------------------------------------------


class FakeEngine:
    """Answers every request alike, and remembers the requests."""

    def stream(self, requests, sampling, on_progress):
        self.requests = requests
        return ((i, Completion([1], [0.0], False)) for i in reversed(range(len(requests))))


def sample(prompts, step=0) -> tuple[list, list]:
    engine, config = FakeEngine(), make_config("rollout.samples=4")
    trainer = SimpleNamespace(
        config=config,
        step=step,
        engine=engine,
        tokenizer=TOKENIZER,
        grader=Grader(),
        on_phase=lambda *_: None,
    )
    return generate(trainer, prompts), engine.requests


def test_all_samples_of_a_group_share_prompt_and_budget_but_no_seed():
    prompts = take(24)
    rollouts, requests = sample(prompts)
    for i, prompt in enumerate(prompts):
        group = rollouts[4 * i : 4 * i + 4]
        assert [r.sample for r in group] == [0, 1, 2, 3]
        assert all(r.prompt is prompt for r in group)
        assert {r.token_ids for r in requests[4 * i : 4 * i + 4]} == {prompt.token_ids}
        assert {r.expected for r in requests[4 * i : 4 * i + 4]} == {prompt.budget}
    assert len({r.seed for r in requests}) == 96


def test_seeds_depend_on_step_and_group_not_on_the_company():
    prompts = take(6)
    _, requests = sample(prompts)
    assert sample(prompts[3:])[1] == requests[12:]
    assert not {r.seed for r in sample(prompts, step=1)[1]} & {r.seed for r in requests}


def test_derived_seeds():
    assert derive_seed(0, "sample", 3, 1207, 5) == 7272028054536875386  # or a resume samples anew
    paths = itertools.product(range(3), ("sample", "evaluate"), range(12), range(12))
    seeds = [derive_seed(*path) for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sum(seed >= 2**62 for seed in seeds) / len(seeds) == pytest.approx(0.5, abs=0.08)
    assert derive_seed(0, 1, 12) != derive_seed(0, 11, 2)
