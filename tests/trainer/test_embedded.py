"""The embedded task: exact lengths, one token a piece, honest sums, disjoint splits."""

import itertools
import json
import random
import re

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.embedded import chains, corpus, task
from trainer.embedded.chains import (
    BOX,
    CHECK,
    EOS,
    FILLERS,
    MIN_LENGTH,
    THINK_END,
    write_chain,
    write_natural_chain,
)
from trainer.embedded.corpus import LONGEST
from trainer.embedded.task import draw, draw_numbers, make_problem, split_of
from trainer.embedded.tokenizer import SPECIALS, build_tokenizer, save_tokenizer

LENGTHS = range(MIN_LENGTH, LONGEST + 1)
TEXTS = (
    "3+14=17\nwait 3+14=17\nso that is </think>\\boxed{17}<|end|>",
    "<|user|>3+14=? Let's think step by step and output the final answer within \\boxed{}."
    " Think for maximum 12 tokens.<|assistant|><think>",
    "don't  split\n\n\tlike 1234567 GPT-2; héllo 日本 \u2028 🙂 so  then</think >",
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def chain_text(numbers, length, seed=0) -> str:
    return "".join(write_chain(numbers, length, random.Random(seed)))


def lines_of(text: str) -> list[tuple[bool, int, int]]:
    """(is it a check, sum of its terms, what it claims) of each line of working."""
    found = re.findall(r"(wait )?([\d+]+)=(\d+)\n", text)
    return [(bool(check), sum(map(int, terms.split("+"))), int(r)) for check, terms, r in found]


def boxed(text: str) -> int:
    return int(re.search(r"boxed\{(\d+)\}<\|end\|>$", text)[1])


# Chains ---------------------------------------------------------------------------------------


def test_chains_have_exactly_the_asked_number_of_tokens(tokenizer):
    for index in range(8 * len(LENGTHS)):
        length = LENGTHS[index % len(LENGTHS)]
        pieces = write_chain(draw_numbers(1, index, "train"), length, random.Random(index))
        ids = tokenizer.encode("".join(pieces), add_special_tokens=False)
        assert len(pieces) == len(ids) == length, pieces
        assert [tokenizer.decode([i]) for i in ids] == pieces  # each piece is one token
        assert tokenizer.decode(ids) == "".join(pieces)
        assert pieces.count(THINK_END) == pieces.count(EOS) == 1 and pieces[-1] == EOS


def test_largest_sum_fits_the_shortest_chain():
    numbers = [max(high for _, high in corpus.SPANS)] * corpus.TERMS[1]
    assert chain_text(numbers, MIN_LENGTH).endswith("{250}<|end|>")


@pytest.mark.parametrize("write", [write_chain, write_natural_chain])
def test_shorter_than_the_closing_is_refused(write):
    with pytest.raises(ValueError, match="at least 8 tokens, got 7"):
        write([2, 3, 4], MIN_LENGTH - 1, random.Random(0))


def test_a_natural_chain_keeps_its_room_and_takes_what_the_sum_asks_for():
    used = {4: [], 8: []}
    for index in range(400):
        numbers, room = draw_numbers(1, index, "train"), LENGTHS[index % len(LENGTHS)]
        assert len(write_natural_chain(numbers, room, random.Random(index))) <= room
        if len(numbers) in used:
            text = "".join(write_natural_chain(numbers, LONGEST, random.Random(index)))
            used[len(numbers)].append(len(lines_of(text)))
            assert not set(FILLERS) & set(re.findall(r"[a-z]+ ", text)) - {CHECK}
    assert 3 <= min(used[4]) < max(used[4]) <= 8  # three lines, none to all checked, two mended
    assert min(used[8]) >= 7


def test_unslipped_chains_are_true_and_end_in_the_right_answer(monkeypatch):
    monkeypatch.setattr(chains, "SLIP", 0.0)
    for index, length in itertools.product(range(8), LENGTHS):
        numbers = draw_numbers(2, index, "heldout")
        text = chain_text(numbers, length, index)
        assert all(total == claimed for _, total, claimed in lines_of(text)), text
        assert boxed(text) == sum(numbers), text


def test_longer_chains_work_in_finer_steps_and_then_check(monkeypatch):
    monkeypatch.setattr(chains, "SLIP", 0.0)
    steps = [chain_text([3, 14, 7, 9], n) for n in (8, 20, 30, 80)]
    working = [[check for check, *_ in lines_of(text)] for text in steps]
    assert working[0] == [] and working[1] == [False] and working[2] == [False] * 3
    assert working[3] == [False] * 3 + [True] * 5  # 30 tokens, and 9 a check


def test_a_checked_slip_is_mended(monkeypatch):
    monkeypatch.setattr(chains, "SLIP", 1.0)
    for index in range(50):
        numbers = draw(random.Random(index), "train", (3, 6), task.NUMBERS)  # room to mend all
        text = chain_text(numbers, LONGEST, index)
        lines = lines_of(text)
        assert any(check for check, *_ in lines), text
        first = next(i for i, (check, *_) in enumerate(lines) if check)
        assert any(total != claimed for _, total, claimed in lines[:first])  # it had slipped,
        assert all(total == claimed for _, total, claimed in lines[first:])  # and what follows is
        assert boxed(text) == sum(numbers), text  # true, to the end


def test_an_unchecked_slip_ends_in_the_wrong_answer(monkeypatch):
    """The box holds what the working claims, or there would be nothing to learn from checking."""
    monkeypatch.setattr(chains, "SLIP", 1.0)
    text = chain_text([3, 14, 7], 25)
    lines = lines_of(text)
    assert lines and not any(check for check, *_ in lines)
    assert boxed(text) == lines[-1][2] != 24


def test_share_of_slips():
    firsts = []
    for index in range(2000):
        lines = lines_of(chain_text([3, 14, 7, 9], 60, index))
        firsts += [total != claimed for check, total, claimed in lines[:3] if not check]
    assert np.mean(firsts) == pytest.approx(chains.SLIP, abs=0.012)  # 4 standard errors


# Tokenizer ------------------------------------------------------------------------------------


def test_ids_are_the_same_through_every_loader(tokenizer, tmp_path):
    """AutoTokenizer rebuilds the pre-tokenizer of Qwen2 models: the ids must not depend on it."""
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    loaders = [PreTrainedTokenizerFast, AutoTokenizer]
    loaded = [loader.from_pretrained(tmp_path, local_files_only=True) for loader in loaders]
    texts = [*TEXTS, *(chain_text(draw_numbers(4, n, "train"), n, n) for n in LENGTHS)]
    message = [{"role": "user", "content": "2+3=?"}]
    for other in loaded:
        assert (other.eos_token_id, other.pad_token_id) == (
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        for text in texts:
            ids = other.encode(text, add_special_tokens=False)
            assert ids == tokenizer.encode(text, add_special_tokens=False), text
            assert other.decode(ids) == text
        rendered = [
            t.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            for t in (other, tokenizer)
        ]
        assert rendered[0] == rendered[1]


def test_any_text_survives(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_phrases_and_specials_are_one_token_each_and_digits_single(tokenizer):
    for piece in [
        *SPECIALS,
        CHECK,
        BOX,
        *FILLERS,
        " Think for ",
        " Think for maximum ",
        " tokens.",
    ]:
        assert len(tokenizer.encode(piece, add_special_tokens=False)) == 1, piece
    assert len(tokenizer.encode("1234567890", add_special_tokens=False)) == 10
    assert len({*SPECIALS}) == 6 and tokenizer.eos_token == EOS != tokenizer.pad_token


def test_vocabulary_is_pinned(tokenizer):
    """The committed base was trained on these ids: another order would make it babble."""
    assert len(tokenizer) == 286
    assert tokenizer.convert_tokens_to_ids(["0", "+", EOS, THINK_END, CHECK]) == [
        15, 10, 257, 261, 267,
    ]  # fmt: skip


# Problems -------------------------------------------------------------------------------------


def test_splits_are_disjoint_by_multiset():
    drawn = {s: [draw_numbers(0, i, s) for i in range(3000)] for s in task.SPLITS}
    keys = {split: {tuple(sorted(numbers)) for numbers in all_} for split, all_ in drawn.items()}
    assert len(keys["train"]) > 2000 and len(keys["heldout"]) > 1000
    assert not keys["train"] & keys["heldout"]
    for split in task.SPLITS:
        for numbers in drawn[split][:20]:
            orders = itertools.islice(itertools.permutations(numbers), 24)
            assert {split_of(list(order)) for order in orders} == {split}


def test_share_held_out():
    rng = random.Random(0)
    draws = [split_of([rng.randint(2, 25) for _ in range(4)]) for _ in range(4000)]
    assert draws.count("heldout") / 4000 == pytest.approx(1 / task.HELDOUT_SHARE, abs=0.021)


def test_problems_are_pure_in_seed_index_and_split():
    straight = [make_problem(5, i, "train") for i in range(30)]
    assert [make_problem(5, i, "train") for i in reversed(range(30))] == straight[::-1]
    assert len({p.question for p in straight}) == 30
    assert [make_problem(6, i, "train") for i in range(30)] != straight
    for problem in straight:
        terms = [int(n) for n in problem.question.removesuffix("=?").split("+")]
        assert problem.answers == (str(sum(terms)),) and problem.kind == "math"
    assert straight[7].id == "train-7"


def test_numbers_fill_their_range():
    drawn = [draw_numbers(0, i, "train") for i in range(2000)]
    assert {len(numbers) for numbers in drawn} == set(range(task.TERMS[0], task.TERMS[1] + 1))
    low, high = task.NUMBERS
    assert {n for numbers in drawn for n in numbers} == set(range(low, high + 1))


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"'test'.*train.*heldout"):
        draw_numbers(0, 0, "test")
