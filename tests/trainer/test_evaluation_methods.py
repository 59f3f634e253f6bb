"""S1 budget forcing as text, token by token; truncation as the cut of the free sample."""

import pytest

from trainer.embedded.task import make_problem
from trainer.embedded.tokenizer import build_tokenizer
from trainer.evaluate.methods import (
    Job,
    count_runs,
    jobs,
    local_request,
    s1_forcing,
    think_length,
    token_limit,
)
from trainer.evaluate.settings import read_settings
from trainer.rollout import Forced

TOKENIZER = build_tokenizer()
PROBLEM = make_problem(0, 0, "heldout")
FREE = read_settings(["mode=none"])
S1 = read_settings(["method=s1", "mode=none"])


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


WAIT, FINAL = tuple(ids_of("wait ")), tuple(ids_of("</think>\\boxed{"))


def request(settings, budget, problem=PROBLEM, k=0):
    return local_request(settings, Job("embedded", problem, budget, k), TOKENIZER)


def test_the_phrases_are_tokens_of_the_embedded_vocabulary():
    assert len(WAIT) == 1 and len(FINAL) == 2


def test_s1_stops_where_the_answer_still_fits():
    forcing = s1_forcing(S1.s1, 30, TOKENIZER)
    assert forcing.draw == 30 - 2 - 5
    thinking = ids_of("1" * 23)
    assert forcing.then(thinking) == Forced(FINAL, 5)
    assert forcing.then([*thinking, *FINAL, *ids_of("24}<|end|>")]) is None


@pytest.mark.parametrize("end", ["</think>", "<|end|>"])
def test_s1_waits_instead_of_an_early_end(end):
    forcing = s1_forcing(S1.s1, 30, TOKENIZER)
    assert set(ids_of(end)) <= {*forcing.stop_ids}
    early = [*ids_of("1" * 10), *ids_of(end)]
    # 23 to think, 10 are there, the end is taken back, the word takes one.
    assert forcing.then(early) == Forced(WAIT, 12, replace=True)
    late = [*ids_of("1" * 22), *ids_of(end)]
    assert forcing.then(late) == Forced(FINAL, 5, replace=True)


def test_s1_waits_only_so_often():
    settings = read_settings(["method=s1", "mode=none", "s1.waits=2"])
    forcing = s1_forcing(settings.s1, 60, TOKENIZER)
    end = ids_of("</think>")
    assert forcing.then([*WAIT, 49, *end]).token_ids == WAIT
    assert forcing.then([*WAIT, 49, *WAIT, 49, *end]).token_ids == FINAL
    never = read_settings(["method=s1", "mode=none", "s1.waits=0"])
    assert s1_forcing(never.s1, 60, TOKENIZER).then([49, *end]).token_ids == FINAL


def test_s1_counts_everything_within_the_budget_unless_it_cannot():
    assert request(S1, 30).max_new_tokens == 30
    assert request(S1, 4).max_new_tokens == 1 + 2 + 5  # the answer alone is longer


def test_limits():
    assert token_limit(read_settings([]), 48) == 96
    assert token_limit(read_settings(["method=truncate"]), 48) == 48
    assert token_limit(FREE, 0) == 192


def test_every_problem_budget_and_sample_once_and_no_budget_but_one_row():
    sets = [("embedded", (PROBLEM, make_problem(0, 1, "heldout")))]
    some = jobs(read_settings(["budgets=[16,32]", "n=3"]), sets)
    assert len(some) == len({job.key for job in some}) == 12
    assert {job.budget for job in jobs(read_settings(["mode=none", "n=3"]), sets)} == {0}
    assert {job.budget for job in jobs(S1, sets)} == set(S1.budgets)


def test_seeds_name_what_is_in_the_prompt_and_not_the_company():
    cut = read_settings(["method=truncate", "mode=none"])
    assert request(cut, 16).seed == request(cut, 64).seed == request(FREE, 0).seed
    exact = read_settings([])
    assert request(exact, 16).seed != request(exact, 64).seed != request(exact, 64, k=1).seed
    assert request(read_settings(["seed=1"]), 16).seed != request(exact, 16).seed


def test_prompts_say_the_budget_only_when_the_mode_does():
    texts = {
        mode: TOKENIZER.decode(request(read_settings([f"mode={mode}"]), 48).token_ids)
        for mode in ("exact", "max", "none")
    }
    assert "Think for 48 tokens" in texts["exact"]
    assert "maximum 48" in texts["max"] and "48" not in texts["none"].split("=?")[1]


def test_runs_and_thinking_are_counted_in_tokens():
    assert count_runs([1, 2, 1, 2, 1], [1, 2]) == 2 and count_runs([1], [1, 2]) == 0
    assert think_length([5, 6, 7, 6, 7], [6, 7]) == 3
    assert think_length([5, 6, 8], [6, 7]) == 3
