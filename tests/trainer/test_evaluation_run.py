"""An evaluation from command line to files with the tiny model: complete, resumable, refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers import write_tiny_base
from trainer.config import ConfigError
from trainer.evaluate import grades, local
from trainer.evaluate.__main__ import main
from trainer.evaluate.display import Display
from trainer.evaluate.evaluation import default_name, run_evaluation
from trainer.evaluate.settings import read_settings
from trainer.files import read_json
from trainer.grading.grader import Grader

SMALL = ("scale=embedded", "problems=3", "n=2", "budgets=[8,16]", "bootstrap=20")


def arguments(base: Path, out: Path, *changes: str) -> list[str]:
    unique = {a.partition("=")[0]: a for a in (*SMALL, *changes)}
    return [*unique.values(), f"model.path={base}", f"out={out}"]


def samples(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["data"], row["budget"], row["problem_id"], row["k"]))


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    assert main(arguments(tiny_base, out)) == 0
    return out


def test_json_csv_and_samples_agree(finished, tiny_base):
    evaluation = read_json(finished / "evaluation.json")
    assert evaluation["model"] == str(tiny_base) and evaluation["method"] == "base_exact"
    assert evaluation["settings"]["n"] == 2
    assert [(r["data"], r["budget"], r["mode"]) for r in evaluation["rows"]] == [
        ("embedded", 8, "exact"),
        ("embedded", 16, "exact"),
    ]
    rows = samples(finished)
    assert len(rows) == 2 * 3 * 2
    for row in evaluation["rows"]:
        mine = [r["tokens"] for r in rows if r["budget"] == row["budget"]]
        assert row["mean_tokens"] == pytest.approx(sum(mine) / len(mine))
        assert max(mine) <= 2 * row["budget"] and "steps" in row["thinking"]
        assert row["correlation"] == evaluation["rows"][0]["correlation"]
    assert all(r["think_tokens"] <= r["tokens"] and r["k"] in (0, 1) for r in rows)
    assert {r["limit"] for r in rows} == {16, 32}
    with (finished / "evaluation.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(r["pass1"]) for r in table] == [r["pass1"] for r in evaluation["rows"]]
    assert [float(r["pass_k.2"]) for r in table] == [r["pass_k"]["2"] for r in evaluation["rows"]]


def test_an_interrupted_evaluation_goes_on_to_the_same_result(finished, tiny_base, tmp_path):
    out = tmp_path / "out"
    settings = read_settings(arguments(tiny_base, out))
    drawn = []

    def dies_after_five(*parts):
        for row in local_draw(*parts):
            if len(drawn) == 5:
                raise KeyboardInterrupt
            drawn.append(row)
            yield row

    local_draw = local.draw
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local, "draw", dies_after_five)
        run_evaluation(settings)
    with (out / "samples.jsonl").open("a") as file:
        file.write('{"data": "embedded", "prob')  # torn by the kill
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            local, "draw", lambda s, f, jobs: asked.extend(jobs) or local_draw(s, f, jobs)
        )
        run_evaluation(settings)
    assert len(asked) == 12 - 5
    assert samples(out) == samples(finished)
    assert (
        read_json(out / "evaluation.json")["rows"]
        == read_json(finished / "evaluation.json")["rows"]
    )


def test_a_finished_evaluation_draws_nothing_and_a_wider_one_the_rest(tiny_base, tmp_path):
    out = tmp_path / "out"
    run_evaluation(read_settings(arguments(tiny_base, out)))
    before = samples(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "load_model", None)  # drawing would call it
        run_evaluation(read_settings(arguments(tiny_base, out)))
    _, wider = run_evaluation(read_settings(arguments(tiny_base, out, "budgets=[8,12,16]")))
    assert [row["budget"] for row in wider["rows"]] == [8, 12, 16]
    assert [row for row in samples(out) if row["budget"] != 12] == before


def test_samples_of_other_settings_or_weights_are_not_mixed_in(
    finished, tiny_base, tmp_path, capsys
):
    assert main(arguments(tiny_base, finished, "temperature=0.5")) == 2
    said = capsys.readouterr().err
    assert "temperature: 1.0 -> 0.5" in said and "choose another out=" in said
    other = write_tiny_base(tmp_path / "other")
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ConfigError, match="weights"):
        run_evaluation(read_settings(arguments(other, finished)))


class OnePool:
    """In place of grading workers: one verdict for every answer that is asked about."""

    def __init__(self, verdict):
        self.verdict, self.asked, self.left, self.closed = verdict, [], {}, False

    def submit(self, key, answer, truths):
        self.asked.append(answer)
        self.left[key] = self.verdict

    def collect(self, on_wait):
        found, self.left = self.left, {}
        return found

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("verdict", "reason"), [("same", "correct"), ("timeout", "timeout")])
def test_the_symbolic_tier_grades_what_the_exact_one_cannot_decide(
    verdict, reason, finished, tiny_base, tmp_path, monkeypatch, caplog
):
    pool = OnePool(verdict)
    data = tmp_path / "set.jsonl"
    data.write_text('{"problem": "?", "answer": "x^2+1"}\n')
    monkeypatch.setattr(grades, "build_grader", lambda tiers, _: Grader(pool=pool, alarm_share=1))
    rows = [{"text": r"</think>\boxed{(x+1)^2-2x}"}, {"text": r"</think>\boxed{1+x^2}"}]
    monkeypatch.setattr(local, "draw", lambda s, f, jobs: [
        local.sample_row(s, job, row["text"], 5, 1, False)
        for job, row in zip(jobs, rows, strict=True)
    ])  # fmt: skip
    changes = (f"data=[{data}]", "budgets=[8]", "grading.symbolic=true")
    settings = read_settings(arguments(tiny_base, tmp_path / "out", *changes))
    _, evaluation = run_evaluation(settings)
    assert evaluation["rows"][0]["reasons"][reason] == (1.0 if verdict == "same" else 0.5)
    assert pool.asked == ["(x+1)^2-2x"] and pool.closed
    assert ("ALARM: 1 of 2 samples" in caplog.text) == (verdict == "timeout")
    with pytest.raises(ConfigError, match="symbolic: True -> None"):
        run_evaluation(read_settings(arguments(tiny_base, tmp_path / "out", *changes[:2])))


def test_truncation_is_the_free_sample_cut(tiny_base, tmp_path):
    free, cut = tmp_path / "free", tmp_path / "cut"
    run_evaluation(read_settings(arguments(tiny_base, free, "mode=none")))
    run_evaluation(
        read_settings(arguments(tiny_base, cut, "mode=none", "method=truncate", "budgets=[6,12]"))
    )
    whole = {(row["problem_id"], row["k"]): row for row in samples(free)}
    assert any(row["truncated"] for row in samples(cut))
    for row in samples(cut):
        of = whole[row["problem_id"], row["k"]]
        assert row["tokens"] == min(of["tokens"], row["budget"])
        assert row["truncated"] == (of["tokens"] > row["budget"])
        assert of["text"].startswith(row["text"].rstrip("\ufffd"))


def test_s1_through_the_engine_holds_the_budget_and_always_answers(tiny_base, tmp_path):
    out = tmp_path / "s1"
    _, evaluation = run_evaluation(
        read_settings(arguments(tiny_base, out, "mode=none", "method=s1", "budgets=[20,40]"))
    )
    for row in samples(out):
        assert row["tokens"] <= row["budget"]
        assert row["text"].count("</think>\\boxed{") == 1
        assert row["budget"] - 7 <= row["think_tokens"] + 1 <= row["budget"] - 5
    assert any("wait " in row["text"] for row in samples(out))  # EOS comes early in this model
    assert evaluation["rows"][0]["over"] == 0


def test_methods_are_named_by_what_they_are(tiny_base):
    def name(*changes):
        return default_name(read_settings(["scale=embedded", *changes]))

    assert name("mode=none") == "base"
    assert name() == "base_exact"
    assert name("method=s1") == "s1"
    assert name(f"model.path={tiny_base}", "mode=max") == f"{tiny_base.name}_max"
    assert name("method=api", "api.url=http://x/v1", "api.model=m") == "api:m"


def test_what_a_user_can_mend_is_said_in_one_line(tmp_path, capsys):
    for change, message in (
        (f"model.path={tmp_path / 'none'}", "model.path: no such folder"),
        ("data=[nowhere]", "data: 'nowhere' is neither"),
        ("n=0", "n: must be more than 0"),
    ):
        assert main(["scale=embedded", change]) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert main([]) == 0 and "python -m trainer.evaluate" in capsys.readouterr().out


def test_progress_estimates_by_tokens_and_not_by_samples(monkeypatch):
    clock = iter([0.0, *[30.0] * 50])
    monkeypatch.setattr("trainer.evaluate.display.time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), width=80)
    with Display("x", samples=4, expected=400, kept=2, console=console) as display:
        display.sample(300)
        assert display.status() == "1/4 samples, 10 s left"
        for _ in range(3):
            display.sample(30)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "x: 2 samples are there already, 4 to draw"
    assert lines[-1] == "x: 4/4 samples in 30 s"
