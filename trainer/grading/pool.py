"""Worker processes that can be killed: one question at a time each, and a limit on it.

No thread and no shared state: a worker is a process with two pipes, and whatever is wrong with it
(too slow, dead, answers nobody asked for) ends the same way: killed, its question lost with a
verdict that says why, another started. So no answer can poison the answers after it.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.grading.frames import FrameError, pack, take

ROOT = Path(__file__).resolve().parents[2]  # what holds the package `trainer`
START_SECONDS = 120.0  # imports of a worker, on a busy machine
MAX_FAILED_STARTS = 3  # in a row
GRACE_SECONDS = 1.0  # for the worker's own alarm, before it is killed from outside
LOOK_SECONDS = 0.5  # between two looks at a stop that was asked for
READ_BYTES = 1 << 16


class PoolError(RuntimeError):
    """Workers do not start: nothing would ever be graded."""


class _Question(NamedTuple):
    id: int
    key: int
    frame: bytes


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float  # time.monotonic(); infinite while idle
    ready: bool = False
    question: _Question | None = None
    buffer: bytearray = field(default_factory=bytearray)


class WorkerPool:
    """`workers` processes of `python -m module`, see worker.py.

    `timeout_seconds` of wall time a question, `memory_mib` of address space a worker. They get an
    empty folder, no environment of ours, and no signals of the terminal. Needs POSIX.
    """

    def __init__(
        self,
        module: str,
        *,
        workers: int,
        timeout_seconds: float,
        memory_mib: int,
        python: str = sys.executable,
    ) -> None:
        self.size, self.seconds, self.replaced = workers, timeout_seconds, 0
        self._limit = memory_mib
        self._command = [python, "-m", module, str(memory_mib), str(timeout_seconds)]
        self._folder = tempfile.TemporaryDirectory(prefix="grading-")
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._waiting: deque[_Question] = deque()
        self._verdicts: dict[int, str] = {}
        self._asked = self._failed_starts = 0

    def start(self) -> None:
        """Wait until a worker can answer. PoolError with its own words when none can."""
        self._fill()
        while not any(worker.ready for worker in self._workers):
            self._turn(LOOK_SECONDS)

    def submit(self, key: int, answer: str, truths: Sequence[str]) -> None:
        """Ask whether `answer` is any of `truths`; returns at once. FrameError above 48 KiB."""
        self._asked += 1
        message = {"id": self._asked, "answer": answer, "truths": list(truths)}
        self._waiting.append(_Question(self._asked, key, pack(message)))
        self._turn(0)

    def collect(self, on_wait: Callable[[int], None] = lambda left: None) -> dict[int, str]:
        """{key: "same" | "different" | "timeout" | "crashed"} of all that was asked since.

        `on_wait(questions left)` is called at least every half second. PoolError as in `start`.
        """
        while left := len(self._waiting) + sum(w.question is not None for w in self._workers):
            on_wait(left)
            self._turn(LOOK_SECONDS)
        found, self._verdicts = self._verdicts, {}
        return found

    def close(self) -> None:
        """Kill the workers; the pool starts new ones when it is used again."""
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()

    def _turn(self, wait: float) -> None:
        """Hand out, wait up to so many seconds for an answer, read all, kill what is overdue."""
        self._fill()
        self._hand_out()
        self._fill()  # for those found dead
        nearest = min(worker.deadline for worker in self._workers) - time.monotonic()
        for event, _ in self._selector.select(max(0.0, min(wait, nearest))):
            self._read(event.data)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline < now]:
            self._lose(worker, "timeout")
        self._fill()
        self._hand_out()

    def _fill(self) -> None:
        while len(self._workers) < self.size:
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise PoolError(
                    f"{self._failed_starts} grading workers in a row did not start with "
                    f"{self._limit} MiB"
                )
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=self._folder.name,
                env=_environment(),
                start_new_session=True,
            )
            worker = _Worker(process, time.monotonic() + START_SECONDS)
            self._selector.register(process.stdout, selectors.EVENT_READ, worker)
            self._workers.append(worker)

    def _hand_out(self) -> None:
        for worker in list(self._workers):
            if not self._waiting:
                return
            if not worker.ready or worker.question is not None:
                continue
            question = self._waiting.popleft()
            try:
                worker.process.stdin.write(question.frame)
            except OSError:  # died while idle: not the question's fault
                self._waiting.appendleft(question)
                self._lose(worker, "crashed")
                continue
            worker.question = question
            worker.deadline = time.monotonic() + self.seconds + GRACE_SECONDS

    def _read(self, worker: _Worker) -> None:
        data = os.read(worker.process.stdout.fileno(), READ_BYTES)
        if not data:
            self._lose(worker, "timeout" if _alarmed(worker.process) else "crashed")
            return
        worker.buffer += data
        try:
            while (message := take(worker.buffer)) is not None:
                self._answer(worker, message)
        except FrameError:
            self._lose(worker, "crashed")

    def _answer(self, worker: _Worker, message: dict[str, Any]) -> None:
        """Take a message; FrameError when it is not what is awaited."""
        question = worker.question
        if not worker.ready:
            if "error" in message:
                raise PoolError(f"a grading worker says: {message['error']}")
            if message != {"ready": True}:
                raise FrameError("not a greeting")
            worker.ready, self._failed_starts = True, 0
        else:
            kinds = {key: type(value) for key, value in message.items()}
            if kinds != {"id": int, "same": bool, "last": bool}:
                raise FrameError("not an answer")
            if question is None or message["id"] != question.id:
                raise FrameError("not an answer to this question")
            self._verdicts[question.key] = "same" if message["same"] else "different"
            worker.question = None
            if message["last"]:  # it has used up its memory, and ends
                raise FrameError("nothing more is to come")
        worker.deadline = float("inf")

    def _lose(self, worker: _Worker, verdict: str) -> None:
        """Kill a worker; the question it had, if any, gets this verdict."""
        self._workers.remove(worker)
        self._end(worker)
        self.replaced += 1
        self._failed_starts += not worker.ready
        if worker.question is not None:
            self._verdicts[worker.question.key] = verdict

    def _end(self, worker: _Worker) -> None:
        self._selector.unregister(worker.process.stdout)
        worker.process.kill()
        worker.process.wait()
        worker.process.stdin.close()
        worker.process.stdout.close()


def _environment() -> dict[str, str]:
    """What a worker needs to start; keys and tokens of the run are not among it."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def _alarmed(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process that closed its output was ended by its own alarm."""
    try:
        return process.wait(GRACE_SECONDS) == -signal.SIGALRM
    except subprocess.TimeoutExpired:
        return False
