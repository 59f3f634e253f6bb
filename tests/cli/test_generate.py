"""`python -m trainer.generate`: tokens as they come, then how many were used of those asked for."""

from __future__ import annotations

import pytest

from tests.helpers import tiny_decoder
from trainer import generate
from trainer.embedded.tokenizer import build_tokenizer
from trainer.rollout import Request, RolloutEngine, Sampling

TOKENIZER = build_tokenizer()


def ask(base, *arguments: str) -> None:
    generate.main(["--model", str(base), "3+4+5=?", *arguments])


def test_text_comes_token_by_token_and_whole():
    engine = RolloutEngine(
        tiny_decoder(),
        eos_id=TOKENIZER.eos_token_id,
        vocab_size=len(TOKENIZER),
        batch_size=1,
    )
    pieces: list[str] = []
    request = Request((258, 40, 259), 4, 30)
    completion = generate.show(engine, request, Sampling(1.0), TOKENIZER, pieces.append)
    assert len(completion.token_ids) > 5
    assert sum(piece != "" for piece in pieces) > 3
    assert "".join(pieces) == TOKENIZER.decode(completion.token_ids)


def test_used_and_requested(tiny_base, capsys):
    ask(tiny_base, "--budget", "9", "--seed", "3")
    first = capsys.readouterr().out
    used = int(first.splitlines()[-1].split()[0])
    assert 1 <= used <= 18 and first.splitlines()[-1].endswith("9 requested (exact)")
    assert first.count("\n") > 0 and len(first) > used  # the text itself is there too
    ask(tiny_base, "--budget", "9", "--seed", "3")
    assert capsys.readouterr().out == first
    ask(tiny_base, "--mode", "none", "--limit", "2", "--seed", "5")
    assert capsys.readouterr().out.splitlines()[-1].endswith("no budget")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "--budget must be at least 1"),
        (["--temperature", "-1"], "temperature must be finite and positive"),
        (["--limit", "-5"], "max_new_tokens=-5"),
        (["--model", "./nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tiny_base, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        ask(tiny_base, *arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
