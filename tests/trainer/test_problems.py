"""Loading problems: every format, every refusal with file and line, and ../shared/data whole."""

import builtins
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.data.problems import load_problems

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROW = '{"problem": "1+1?", "answer": "2"}'


@pytest.fixture
def write(tmp_path: Path):
    def write_file(content: str | bytes, name: str = "set.jsonl") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Make one package look uninstalled."""

    def hide(package: str) -> None:
        real = builtins.__import__

        def refuse(name: str, *args, **kwargs):
            if name.partition(".")[0] == package:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", refuse)

    return hide


def test_jsonl(write) -> None:
    content = ROW + "\n"
    loaded = load_problems(write(content))
    (problem,) = loaded.problems
    assert (problem.id, problem.question) == ("set-0", "1+1?")
    assert (problem.answers, problem.kind) == (("2",), "math")
    assert loaded.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert loaded.source.endswith("set.jsonl")
    assert loaded.dropped == {"no_answer": 0}


def test_bom_crlf_blank_lines_and_line_separators(write) -> None:
    second = '{"problem": "a\u2028b", "answer": 3}'
    loaded = load_problems(write(f"\ufeff{ROW}\r\n\r\n  \n{second}"))
    assert [p.question for p in loaded.problems] == ["1+1?", "a\u2028b"]
    assert [p.id for p in loaded.problems] == ["set-0", "set-1"]


@pytest.mark.parametrize("content", [f"[{ROW}]", f'{{"version": 1, "rows": [{ROW}]}}'])
def test_json(write, content: str) -> None:
    assert load_problems(write(content, "set.json")).problems[0].answers == ("2",)


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    import pyarrow.parquet as pq

    path = tmp_path / "set.parquet"
    rows = [
        {"problem": "a", "answer": ["1", "one"], "id": "first"},
        {"problem": "b", "answer": None, "id": "second"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    loaded = load_problems(str(path))
    assert [(p.id, p.answers) for p in loaded.problems] == [("first", ("1", "one"))]
    assert loaded.dropped == {"no_answer": 1}
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"set\.parquet: not a readable parquet file"):
        load_problems(str(path))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('"x"', ("x",)),
        ('" 7 "', ("7",)),
        ("7", ("7",)),
        ("-7", ("-7",)),
        ("142.0", ("142",)),
        ("0.1", ("0.1",)),
        ("1e-5", ("0.00001",)),
        ("1e22", ("10000000000000000000000",)),
        ("100.0", ("100",)),
        ('["1/2", 0.5, null, ""]', ("1/2", "0.5")),
    ],
)
def test_answers(write, answer: str, expected: tuple[str, ...]) -> None:
    loaded = load_problems(write(f'{{"problem": "q", "answer": {answer}}}'))
    assert loaded.problems[0].answers == expected


@pytest.mark.parametrize("answer", ["null", '""', '" "', "[]", '[null, " "]'])
def test_rows_without_an_answer_are_dropped_and_counted(write, answer: str) -> None:
    loaded = load_problems(write(f'{{"problem": "q", "answer": {answer}}}\n{ROW}'))
    assert loaded.dropped == {"no_answer": 1}
    assert [p.id for p in loaded.problems] == ["set-1"]  # ids count rows, not survivors


def test_ids_keys_kind_and_limit(write) -> None:
    rows = [{"id": 5, "unique_id": "u", "q": "a", "a": "A"}, {"id": "x", "q": "b", "a": "B"}]
    path = write("\n".join(map(json.dumps, rows)))
    loaded = load_problems(path, question_key="q", answer_key="a", kind="choice")
    assert [(p.id, p.kind) for p in loaded.problems] == [("u", "choice"), ("x", "choice")]
    assert len(load_problems(path, question_key="q", answer_key="a", limit=1).problems) == 1
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        load_problems(path, limit=0)
    with pytest.raises(ValueError, match="not 'essay'"):
        load_problems(path, kind="essay")


MALFORMED = {
    "broken": ("{", r":2: not JSON: .* column 2"),
    "not an object": ("[1]", ":2: expected an object, got list"),
    "no question": ('{"prompt": "q", "answer": "1"}', ":2: no key 'problem'.*'prompt', 'answer'"),
    "no answer key": ('{"problem": "q", "gold": "1"}', ":2: no key 'answer'.*'problem', 'gold'"),
    "empty question": ('{"problem": " ", "answer": "1"}', ":2: 'problem' must be a non-empty"),
    "question type": ('{"problem": 3, "answer": "1"}', ":2: 'problem' must be .* not 3"),
    "answer object": ('{"problem": "q", "answer": {}}', ":2: 'answer' must be text"),
    "answer bool": ('{"problem": "q", "answer": true}', ":2: 'answer' must be text.*True"),
    "nested list": ('{"problem": "q", "answer": [["1"]]}', ":2: 'answer' must be text"),
    "nan": ('{"problem": "q", "answer": NaN}', ":2: 'answer' must be finite, not nan"),
    "overflow": ('{"problem": "q", "answer": 1e999}', ":2: 'answer' must be finite, not inf"),
    "digits": ('{"problem": "q", "answer": ' + "1" * 5_000 + "}", ":2: not usable JSON"),
    "brackets": ("[" * 200_000, ":2: not usable JSON"),
}


@pytest.mark.parametrize(("line", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_row_names_file_and_line(write, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"set\.jsonl{message}"):
        load_problems(write(f"{ROW}\n{line}\n{ROW}"))


def test_not_utf8_names_the_line(write) -> None:
    with pytest.raises(ValueError, match=r"set\.jsonl:2: not UTF-8 \(byte 0xe9\)"):
        load_problems(write(ROW.encode() + b'\n{"problem": "caf\xe9", "answer": "1"}'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[\n1,\n}", ":3: not JSON: .* column 1"),
        ("7", ": expected a list of objects, got int"),
        ('{"a": [], "b": []}', r": expected one list .* found lists \['a', 'b'\]"),
        ('{"a": 1}', r": expected one list .* found lists \[\]"),
        (f"[{ROW}, 7]", ": item 1: expected an object, got int"),
        ("[]", ": no problems"),
    ],
)
def test_malformed_json_file(write, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"set\.json{message}"):
        load_problems(write(content, "set.json"))


def test_nothing_to_load(write, tmp_path: Path) -> None:
    for content in ("", "\n\n", '{"problem": "q", "answer": null}'):
        with pytest.raises(ValueError, match="no problems"):
            load_problems(write(content))
    with pytest.raises(ValueError, match="no such file"):
        load_problems(str(tmp_path / "absent.jsonl"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="no such file"):
        load_problems(str(tmp_path / "folder.json"))
    with pytest.raises(ValueError, match=r"x\.csv: expected one of \.jsonl, \.json, \.parquet"):
        load_problems(write(ROW, "x.csv"))


def test_missing_extras_are_named(write, without) -> None:
    path = write(b"PAR1", "set.parquet")
    without("pyarrow")
    with pytest.raises(ValueError, match=r"pip install 'lcpo-trainer\[parquet\]'"):
        load_problems(path)
    without("datasets")
    with pytest.raises(ValueError, match=r"pip install 'lcpo-trainer\[hub\]'"):
        load_problems("hub:owner/name")


def fake_hub(monkeypatch: pytest.MonkeyPatch, load_dataset) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, split: str) -> list[dict]:
        calls.append((name, split))
        return [{"problem": "q", "answer": 2.0}, {"problem": "r", "answer": None}]

    fake_hub(monkeypatch, load_dataset)
    first, second = load_problems("hub:owner/name"), load_problems("hub:owner/name:test")
    assert calls == [("owner/name", "train"), ("owner/name", "test")]
    assert [(p.id, p.answers) for p in first.problems] == [("name-0", ("2",))]
    assert first.dropped == {"no_answer": 1}
    assert first.sha256 == second.sha256 and len(first.sha256) == 64
    fake_hub(monkeypatch, lambda name, split: [{"problem": "q", "answer": 3.0}])
    assert load_problems("hub:owner/name").sha256 != first.sha256


def test_a_configuration_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*names: str, split: str) -> list[dict]:
        calls.append((*names, split))
        return [{"problem": "q", "answer": "2"}]

    fake_hub(monkeypatch, load_dataset)
    (problem,) = load_problems("hub:owner/name/config:test").problems
    assert calls == [("owner/name", "config", "test")] and problem.id == "name-0"


def test_hub_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    fake_hub(monkeypatch, offline)
    with pytest.raises(ValueError, match=r"hub:owner/name: cannot be loaded .*offline\?"):
        load_problems("hub:owner/name")
    for spec in ("hub:", "hub:name", "hub:/name", "hub:a/b/c/d", "hub:a/b/"):
        with pytest.raises(ValueError, match="expected hub:owner/name"):
            load_problems(spec)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data sets at {DATA}")
@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [("amc", 83, 0), ("math500", 500, 0), ("math_train", 7_470, 4)],  # 2 null and 2 empty answers
)
def test_shared_data_loads_whole(name: str, kept: int, dropped: int) -> None:
    loaded = load_problems(str(DATA / f"{name}.jsonl"))
    assert (len(loaded.problems), loaded.dropped["no_answer"]) == (kept, dropped)
    assert len({problem.id for problem in loaded.problems}) == kept
    if name == "amc":
        assert loaded.problems[0].answers == ("142",)
