"""The report: what it shows of which folder, what it refuses, and that no text escapes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from report_folders import (
    BUDGETS,
    HOSTILE,
    evaluation_row,
    sample,
    write_evaluation,
    write_files,
    write_training,
)

from trainer.report.__main__ import main, write_report
from trainer.report.figures import behaviour_rates, draw_charts
from trainer.report.library import MAX_TEXT, PER_CELL, build_library, shorten
from trainer.report.sources import load_sources
from trainer.samples import clean


class Page(HTMLParser):
    """A parsed page: its elements, and the text of each script, style and table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def library(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def hostile_evaluation(folder: Path) -> Path:
    """An evaluation in which every string tries to break out of the page."""
    row = evaluation_row(HOSTILE, 512, HOSTILE, behaviour={HOSTILE: 1.0})
    text = sample(HOSTILE, 3, 512, HOSTILE, 0) | dict.fromkeys(
        ("text", "problem", "problem_id", "answer", "truth", "reason"), HOSTILE
    )
    content = {"model": HOSTILE, "method": HOSTILE, "settings": {HOSTILE: HOSTILE}, "rows": [row]}
    return write_files(folder, {"evaluation.json": content}, {"samples.jsonl": [text]})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods, a baseline without budget, and a training run."""
    root = tmp_path_factory.mktemp("runs")
    return [
        write_evaluation(root / "exact", "l1_exact", data=("amc", "aime")),
        write_evaluation(root / "s1", "s1", shift=-0.2),
        write_evaluation(root / "base", "base", mode="none", budgets=(None,)),
        write_training(root / "train"),
    ]


def test_every_section_of_the_issue(folders):
    charts = draw_charts(load_sources(folders))
    shown = Counter(chart.section for chart in charts)
    assert shown == {
        "Accuracy against tokens used": 3,  # data sets
        "Requested against used tokens": 3,  # sources with budgets
        "Length deviation by budget": 3,
        "Length deviation of samples by budget": 3,
        "Training": 6,
        "Behaviour by budget": 2,
    }
    accuracy = charts[0].figure.axes[0]
    assert accuracy.get_xscale() == "log"
    assert {line.get_label() for line in accuracy.lines} == {"l1_exact", "s1", "base"}
    assert len({chart.file for chart in charts}) == len(charts)
    intervals = accuracy.collections[0].get_segments()
    assert len(intervals) == len(BUDGETS) and intervals[0][0, 1] < intervals[0][1, 1]


def test_a_single_point_has_room(tmp_path):
    folder = write_evaluation(tmp_path / "base", "base", mode="none", budgets=(None,))
    axes = draw_charts(load_sources([folder]))[0].figure.axes[0]
    low, high = axes.get_xlim()
    assert (low, high) == (pytest.approx(2575 / 2), pytest.approx(2575 * 2))


def test_one_file_and_pictures(folders, tmp_path, capsys):
    assert main([*map(str, folders), "--out", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 20
    assert all((imread(path)[..., :3] < 0.99).any(-1).sum() > 1000 for path in pictures)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.count("svg") == 20 and page.count("table") == 1
    assert page.library()["problems"]


def test_nothing_is_loaded_from_elsewhere(folders, tmp_path):
    page = Page(write_report(folders, tmp_path, 100).read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value and value.startswith("#"), (tag, name, value)
            assert "url(" not in (value or "").replace("url(#", "")
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in policy
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert ids.most_common(1)[0][1] == 1
    used = {a["xlink:href"][1:] for _, a in page.elements if "xlink:href" in a}
    assert used and used <= set(ids)


def test_hostile_text_stays_text(tmp_path, folders):
    hostile = hostile_evaluation(tmp_path / "<img src=x onerror=window.owned=1>")
    page = Page(write_report([hostile, folders[1]], tmp_path / "out", 100).read_text("utf-8"))
    assert page.count("script") == 2 and page.count("img") == 0
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert "window.owned" not in page.scripts[1]
    library = page.library()
    found = next(p for p in library["problems"] if "owned" in p["id"])
    assert found["question"] == found["samples"][0]["text"] == clean(HOSTILE)
    assert "\u202e" not in found["question"] and "\x1b" not in found["question"]
    assert not set("<>&\u2028") & set(page.scripts[0])


def test_missing_parts_are_said(tmp_path, folders):
    (source,) = load_sources([write_files(tmp_path / "a", {}, {"metrics.jsonl": []})])
    assert [note.split(":")[0] for note in source.notes] == [
        "no evaluations.jsonl", "no samples.jsonl", "no config.json",
    ]  # fmt: skip
    rows = [evaluation_row("amc", 512, "exact", behaviour={}, pass1_low=None, pass_k=None)]
    bare = write_files(tmp_path / "b", {"evaluation.json": {"rows": rows}}, {})
    (source,) = load_sources([bare])
    assert source.methods[0].name == "b" and not source.methods[0].used
    assert len(source.notes) == 2 and "no samples.jsonl" in source.notes[0]
    text = write_report([bare], tmp_path / "out", 10).read_text(encoding="utf-8")
    assert source.notes[0] in text and "No samples in these folders." in text
    assert "pass@k" not in text and "maj@k" in text


@pytest.mark.parametrize(
    ("objects", "tables", "message"),
    [
        (None, {}, "no such folder"),
        ({}, {}, "neither a training run"),
        ({"evaluation.json": {"rows": 3}}, {}, "is not a list"),
        ({"evaluation.json": {"rows": [{"data": "amc"}]}}, {}, "row 0: not a row with data"),
        ({"evaluation.json": {"rows": [evaluation_row(3, 8, "max")]}}, {}, "data 3"),
        ({"evaluation.json": {"rows": [evaluation_row("a", 8, "max", bias="x")]}}, {}, "bias 'x'"),
        ({"evaluation.json": {"rows": []}}, {"samples.jsonl": [{"text": "x"}]}, 'no "data"'),
        (
            {"evaluation.json": {"rows": []}},
            {"samples.jsonl": [sample("a", 1, 8, "max", 0) | {"tokens": "9"}]},
            "got '9' used, 8 asked",
        ),
        ({}, {"metrics.jsonl": [{"no": "step"}]}, "metrics.jsonl:1: not a row"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(tmp_path, capsys, objects, tables, message):
    folder = tmp_path / "given"
    if objects is not None:
        write_files(folder, objects, tables)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_not_json_is_refused(tmp_path, capsys):
    write_files(tmp_path / "a", {}, {})
    (tmp_path / "a" / "evaluation.json").write_text("{")
    assert main([str(tmp_path / "a")]) == 2
    assert "not a JSON file" in capsys.readouterr().err


def test_methods_of_one_name_are_told_apart(tmp_path, folders):
    again = write_evaluation(tmp_path / "seed1", "l1_exact")
    names = [m.name for s in load_sources([folders[0], again, folders[3]]) for m in s.methods]
    assert names == ["l1_exact · exact", "l1_exact · seed1", "before · train", "after · train"]
    assert [m.name for m in load_sources([folders[3]])[0].methods] == ["before", "after"]
    twins = [write_evaluation(tmp_path / top / "x", "l1_exact") for top in "ab"]
    names = [source.methods[0].name for source in load_sources(twins)]
    assert names == [f"l1_exact · {twin}" for twin in twins]


def test_modes_of_one_evaluation_are_methods(tmp_path):
    rows = [evaluation_row("amc", 512, mode) for mode in ("exact", "max")]
    samples = [sample("amc", 1, 512, mode, 0) for mode in ("exact", "max")]
    content = {"method": "l1", "rows": rows}
    folder = write_files(tmp_path / "l1", {"evaluation.json": content}, {"samples.jsonl": samples})
    (source,) = load_sources([folder])
    assert [m.name for m in source.methods] == ["l1 (exact)", "l1 (max)"]
    assert [row["method"] for row in source.samples()] == ["l1 (exact)", "l1 (max)"]
    assert [len(m.used) for m in source.methods] == [1, 1]


def test_behaviour_is_pooled_by_tokens():
    few = {"budget": 8, "n": 1, "problems": 1}
    rows = [
        few | {"mean_tokens": 300.0, "behaviour": {"wait": 2.0, "so": None}},
        few | {"mean_tokens": 100.0, "behaviour": {"wait": 6.0}},
        few | {"mean_tokens": 50.0, "behaviour": {"wait": 4.0}, "budget": 16},
        few | {"mean_tokens": 50.0, "behaviour": {"wait": 9.0}, "budget": None},
    ]
    assert behaviour_rates(rows) == {"wait": {8: pytest.approx(3.0), 16: pytest.approx(4.0)}}


def test_the_library_keeps_problems_of_all_methods(folders):
    library = build_library(load_sources(folders), limit=60)
    content = library.content
    assert library.found == 12 * 2 * (4 + 4 + 4 + 1) + 3
    assert library.kept == sum(len(p["samples"]) for p in content["problems"]) <= 60
    sets = Counter(problem["data"] for problem in content["problems"])
    assert set(sets) == {"amc", "aime", "rollouts of train"}  # in turns
    amc = [problem for problem in content["problems"] if problem["data"] == "amc"]
    for problem in amc:  # every method's at every budget
        assert {s["column"] for s in problem["samples"]} == set(range(9))
    rollouts = next(p for p in content["problems"] if p["data"] == "rollouts of train")
    assert [s["tokens"] for s in rollouts["samples"]] == [18, 19, 20]  # the last step alone
    a, b = (content["columns"][i] for i in content["start"])
    assert (a, b) == ("l1_exact · 3600 tokens", "s1 · 3600 tokens")


def test_the_library_is_bounded(tmp_path):
    rows = [sample("amc", p, 512, "exact", k) for p in range(9) for k in range(9)]
    rows = [row | {"text": "x" * 50_000 + "</think>\\boxed{4}", "answer": "4"} for row in rows]
    tables = {"samples.jsonl": rows}
    content = {"rows": [evaluation_row("amc", 512, "exact")]}
    folder = write_files(tmp_path / "long", {"evaluation.json": content}, tables)
    library = build_library(load_sources([folder]), limit=2 * PER_CELL)
    assert (library.kept, library.found) == (2 * PER_CELL, 81)
    assert build_library(load_sources([folder]), limit=1).kept == PER_CELL  # one problem at least
    text = write_report([folder], tmp_path / "out", 2 * PER_CELL).read_text(encoding="utf-8")
    assert len(text) < 200_000 and "8 of 81 samples are in this file" in text
    shown = library.content["problems"][0]["samples"][0]
    thinking, start, end = shown["parts"]
    assert shown["text"][start:end] == "4" and shown["text"][:thinking].endswith("</think>")


def test_shorten():
    assert shorten("x" * MAX_TEXT) == "x" * MAX_TEXT
    text = shorten("a" * 5_000 + "b" * 6_000)
    assert text == "a" * 2_000 + "\n[… 3,000 characters left out …]\n" + "b" * 6_000
