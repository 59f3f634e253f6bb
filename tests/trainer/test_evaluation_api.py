"""An OpenAI-compatible endpoint, as a stub on this machine: retries, resumption, cost, the key."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.evaluate import api
from trainer.evaluate.__main__ import main
from trainer.evaluate.evaluation import run_evaluation
from trainer.evaluate.settings import read_settings
from trainer.files import read_json

KEY = "a-secret-key"


class Stub(ThreadingHTTPServer):
    """Answers sums rightly; `script` holds (status, headers) to send first, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, dict[str, str]]] = []
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.message: dict = {}
        self.answered = self.at_once = self.most_at_once = 0


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        stub: Stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.keys.add(self.headers["Authorization"])
            stub.bodies.append({**body, "path": self.path})
            status, headers = stub.script.pop(0) if stub.script else (200, {})
            stub.at_once += 1
            stub.most_at_once = max(stub.most_at_once, stub.at_once)
        time.sleep(0.01)  # so that requests do overlap
        with stub.lock:
            stub.at_once -= 1
            stub.answered += status == 200
        question = body["messages"][0]["content"].split("=?")[0]
        total = sum(map(int, question.split("+")))
        message = stub.message or {"content": f"so </think>\\boxed{{{total}}}"}
        usage = {"prompt_tokens": 20, "completion_tokens": 7}
        answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        if "reasoning_content" in message:
            usage["completion_tokens_details"] = {"reasoning_tokens": 5}
        content = json.dumps(answer if status == 200 else {"error": "no such luck"}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def stub(monkeypatch) -> Iterator[Stub]:
    monkeypatch.setenv("STUB_KEY", KEY)
    monkeypatch.setattr(api, "FIRST_PAUSE", 0.001)
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def arguments(stub: Stub, out: Path, *changes: str) -> list[str]:
    every = ["method=api", "scale=embedded", "problems=3", "n=2", "budgets=[16,32]",
             f"api.url=http://127.0.0.1:{stub.server_address[1]}/v1", "api.model=stub",
             "api.key_env=STUB_KEY", "api.concurrency=3", "api.usd_per_million_prompt=1",
             "api.usd_per_million_completion=10", f"out={out}", *changes]  # fmt: skip
    return list({a.partition("=")[0]: a for a in every}.values())


def test_answers_are_asked_graded_counted_and_priced(stub, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(stub, out)) == 0
    evaluation = read_json(out / "evaluation.json")
    assert (evaluation["method"], evaluation["model"]) == ("api:stub", "stub")
    assert [(r["pass1"], r["mean_tokens"]) for r in evaluation["rows"]] == [(1.0, 7.0)] * 2
    assert evaluation["cost"] == {
        "prompt_tokens": 240,
        "completion_tokens": 84,
        "usd": pytest.approx((240 * 1 + 84 * 10) / 1e6),
    }
    assert "240 prompt and 84 completion tokens, 0.00 USD" in capsys.readouterr().out
    assert len(stub.bodies) == 12 and 1 < stub.most_at_once <= 3
    assert {b["path"] for b in stub.bodies} == {"/v1/chat/completions"}
    assert {b["max_tokens"] for b in stub.bodies} == {32, 64}
    assert {b["messages"][0]["content"].split("Think for ")[1] for b in stub.bodies} == {
        "16 tokens.",
        "32 tokens.",
    }


def test_the_key_goes_into_the_header_and_nowhere_else(stub, tmp_path, capsys):
    stub.script = [(500, {})]
    assert main(arguments(stub, tmp_path / "out")) == 0
    assert stub.keys == {f"Bearer {KEY}"}
    said = capsys.readouterr()
    kept = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert KEY not in kept + said.out + said.err


def test_what_may_be_better_next_time_is_asked_again(stub, tmp_path):
    stub.script = [(429, {"Retry-After": "0.8"}), (500, {}), (503, {"Retry-After": "never"})]
    start = time.monotonic()
    run_evaluation(read_settings(arguments(stub, tmp_path / "out", "api.concurrency=1")))
    assert len(stub.bodies) == 12 + 3
    assert time.monotonic() - start > 0.75 * 0.8  # the pause that was asked for


def test_what_cannot_be_mended_is_said_in_the_endpoints_words(stub, tmp_path, capsys):
    stub.script = [(400, {})]
    assert main(arguments(stub, tmp_path / "out", "api.concurrency=1")) == 2
    said = capsys.readouterr().err
    assert "status 400" in said and "no such luck" in said and "Traceback" not in said
    assert len(stub.bodies) == 1


def test_it_gives_up_after_the_retries_and_goes_on_where_it_stopped(stub, tmp_path):
    out = tmp_path / "out"
    settings = read_settings(arguments(stub, out, "api.retries=2", "api.concurrency=1"))
    stub.script = [(200, {})] * 4 + [(500, {})] * 3
    with pytest.raises(api.ApiError, match="gave up after 3 attempts: status 500"):
        run_evaluation(settings)
    assert stub.answered == 4
    run_evaluation(settings)
    assert stub.answered == 12  # nothing is paid for twice
    assert [row["problems"] for row in read_json(out / "evaluation.json")["rows"]] == [3, 3]


def test_answers_on_their_way_beside_a_failure_are_kept(stub, tmp_path):
    out = tmp_path / "out"
    settings = read_settings(arguments(stub, out, "api.retries=0"))
    stub.script = [(200, {}), (500, {}), (200, {})]
    with pytest.raises(api.ApiError):
        run_evaluation(settings)
    assert 0 < stub.answered < 12  # those beside it, no more
    assert len((out / "samples.jsonl").read_text().splitlines()) == stub.answered


def test_redirects_are_refused(stub, tmp_path):
    """The key must not follow one to another host."""
    stub.script = [(302, {"Location": "http://127.0.0.1:9/elsewhere"})]
    settings = read_settings(arguments(stub, tmp_path / "out", "api.concurrency=1"))
    with pytest.raises(api.ApiError, match="status 302"):
        run_evaluation(settings)


def test_reasoning_kept_apart_by_the_endpoint_is_thinking(stub, tmp_path):
    stub.message = {"reasoning_content": "hm", "content": "\\boxed{0}"}
    run_evaluation(read_settings(arguments(stub, tmp_path / "out", "problems=1")))
    (row, *_) = map(json.loads, (tmp_path / "out" / "samples.jsonl").open())
    assert row["text"] == "hm</think>\\boxed{0}"
    assert (row["tokens"], row["think_tokens"], row["reason"]) == (7, 5, "wrong")


@pytest.mark.parametrize("message", [None, "text", {"content": 3}, {"reasoning_content": "x"}])
def test_what_is_no_chat_completion_is_refused_or_graded_wrong(message, stub, tmp_path):
    stub.message = message or {"refusal": "no"}
    settings = read_settings(arguments(stub, tmp_path / "out", "problems=1", "n=1"))
    if message in ("text", {"content": 3}):
        with pytest.raises(api.ApiError, match="not a chat completion"):
            run_evaluation(settings)
        return
    _, evaluation = run_evaluation(settings)
    assert evaluation["rows"][0]["pass1"] == 0


def test_no_key_and_no_server(stub, tmp_path, monkeypatch):
    settings = read_settings(
        arguments(stub, tmp_path / "a", "api.url=http://127.0.0.1:1/v1", "api.retries=1")
    )
    with pytest.raises(api.ApiError, match=r"gave up after 2 attempts: .*refused"):
        run_evaluation(settings)
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(ConfigError, match="the environment variable STUB_KEY is empty"):
        run_evaluation(read_settings(arguments(stub, tmp_path / "b")))
    assert not stub.bodies
