"""T21, T22: whatever an answer does to its worker, it is said why, and the next answer is graded.

The workers run a stub, so that this needs no math-verify. Without it, what is tested is the pool's.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.stub_worker import COMMANDS, HARMLESS
from trainer.grading.frames import MAX_FRAME, FrameError, pack, take
from trainer.grading.pool import GRACE_SECONDS, PoolError, WorkerPool

STUB = "tests.fault.stub_worker"
SECONDS = 1.5
# A pool's bounded time, with room for a machine on which six others work.
SLACK = 30.0
TIMEOUTS = ("hang", "sleep", "ignore signals", "stop")


def make_pool(**changes: object) -> WorkerPool:
    settings = {"workers": 1, "timeout_seconds": SECONDS, "memory_mib": 512, **changes}
    return WorkerPool(STUB, **settings)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = make_pool()
    pool.start()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[WorkerPool]:
    pool = make_pool(workers=2)
    pool.start()
    yield pool
    pool.close()


def ask(pool: WorkerPool, *answers: str) -> list[str]:
    for key, answer in enumerate(answers):
        pool.submit(key, answer, ["other", "right"])
    found = pool.collect()
    assert sorted(found) == list(range(len(answers)))
    return [found[key] for key in range(len(answers))]


def test_right_and_wrong(shared: WorkerPool) -> None:
    assert ask(shared, "right", "wrong", "right") == ["same", "different", "same"]
    assert shared.collect() == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_t22_a_broken_worker_is_named_and_replaced(shared: WorkerPool, command: str) -> None:
    started, before = time.monotonic(), shared.replaced
    expected = "timeout" if command in TIMEOUTS else "crashed"
    assert ask(shared, "right", command, "right") == ["same", expected, "same"]
    assert shared.replaced == before + 1
    assert time.monotonic() - started < SECONDS + GRACE_SECONDS + SLACK


@pytest.mark.parametrize("command", HARMLESS)
def test_what_a_library_prints_is_not_an_answer(shared: WorkerPool, command: str) -> None:
    before = shared.replaced
    assert ask(shared, command, "right") == ["different", "same"]
    assert shared.replaced == before


def test_a_worker_that_has_used_up_its_memory_is_replaced_behind_its_answer(
    pool: WorkerPool,
) -> None:
    """Caches grow: its answer counts, and no question is sent into a process that ends."""
    assert ask(pool, "wrong", "fill", "right", "right") == ["different"] * 2 + ["same"] * 2
    assert pool.replaced == 1


def test_t21_hostile_answers_take_the_limit_divided_by_the_workers() -> None:
    """T21: total time <= answers / workers x limit, and a right answer afterwards is right."""
    pool = make_pool(workers=2)
    pool.start()
    started = time.monotonic()
    assert ask(pool, *["sleep"] * 4, "right") == ["timeout"] * 4 + ["same"]
    # Two rounds of the limit, each with the start of a worker, which SLACK is for.
    assert 2 * SECONDS < time.monotonic() - started < 2 * (SECONDS + GRACE_SECONDS) + SLACK
    pool.close()


def test_the_time_of_an_answer_is_its_own(pool: WorkerPool) -> None:
    """Ten slow answers take longer than the limit in all, and none of them times out."""
    started = time.monotonic()
    assert ask(pool, *["slow"] * 10) == ["different"] * 10
    assert time.monotonic() - started > SECONDS and pool.replaced == 0


def test_an_answer_that_is_read_late_counts(pool: WorkerPool) -> None:
    """While the model decodes nobody looks at the pool."""
    pool.submit(0, "right", ["right"])
    time.sleep(SECONDS + GRACE_SECONDS + 0.5)
    assert pool.collect() == {0: "same"} and pool.replaced == 0


def test_a_worker_killed_from_outside(pool: WorkerPool) -> None:
    """Idle: nothing is lost. At work: its question is, and it is said."""
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert ask(pool, "right") == ["same"]
    pool.submit(0, "sleep", ["right"])
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    pool.submit(1, "right", ["right"])
    assert pool.collect() == {0: "crashed", 1: "same"}
    assert pool.replaced == 2


def test_workers_end_with_their_pipe_and_when_closed(pool: WorkerPool) -> None:
    (worker,) = pool._workers
    worker.process.stdin.close()
    assert worker.process.wait(SLACK) == 0
    pool._turn(0)
    assert ask(pool, "right") == ["same"]
    pid = pool._workers[0].process.pid
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert ask(pool, "right") == ["same"]


def test_t21_a_stuck_worker_ends_itself_when_its_owner_is_gone(pool: WorkerPool) -> None:
    """Its alarm is its own: a killed run leaves no process at full load."""
    pool.submit(0, "hang", ["right"])
    assert pool._workers[0].process.wait(SECONDS + SLACK) == -signal.SIGALRM


def test_t23_workers_get_no_secrets_and_write_no_files(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    pool.close()
    assert ask(pool, "environment OPENAI_API_KEY") == ["different"]
    assert ask(pool, "environment PYTHONPATH") == ["same"]
    assert ask(pool, "write file") == ["crashed"]
    written = [f for f in Path(pool._folder.name).iterdir() if f.stat().st_size]
    assert written == []


def test_t08_the_terminal_signals_no_worker(pool: WorkerPool) -> None:
    """Ctrl-C goes to the whole foreground group of the session: what was asked is still graded."""
    assert os.getsid(pool._workers[0].process.pid) != os.getsid(0)


def test_t08_waiting_can_be_left(pool: WorkerPool) -> None:
    """T8: a stop that was asked for is taken while answers are awaited."""

    def stop(left: int) -> None:
        assert left == 1
        raise InterruptedError

    pool.submit(0, "sleep", ["right"])
    with pytest.raises(InterruptedError):
        pool.collect(stop)


def test_workers_that_do_not_start_are_an_error() -> None:
    with pytest.raises(PoolError, match="3 grading workers in a row did not start with 16 MiB"):
        make_pool(memory_mib=16).start()
    pool = WorkerPool("no.such.module", workers=2, timeout_seconds=1.0, memory_mib=512)
    with pytest.raises(PoolError, match="did not start"):
        pool.submit(0, "right", ["right"])
        pool.collect()
    missing = make_pool()
    missing._command.append("No module named 'math_verify'")
    with pytest.raises(PoolError, match="a grading worker says: No module named 'math_verify'"):
        missing.start()
    for each in (pool, missing):
        each.close()


def test_frames() -> None:
    message = {"id": 1, "answer": "\ud800\0\u2028é", "truths": ["{", '"']}
    data = pack(message)
    buffer = bytearray()
    for byte in data[:-1]:
        buffer.append(byte)
        assert take(buffer) is None
    buffer += data[-1:] + data
    assert take(buffer) == message and take(buffer) == message and not buffer
    with pytest.raises(FrameError, match=f"the most is {MAX_FRAME}"):
        pack({"answer": "x" * MAX_FRAME})
    for bad in (b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\2{]", b"\0\0\0\1\xff"):
        with pytest.raises(FrameError):
            take(bytearray(bad))
    with pytest.raises(FrameError):
        take(bytearray(b"\0\0\xbf\xff" + b"[" * 0xBFFF))
