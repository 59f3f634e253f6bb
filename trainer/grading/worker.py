"""The inside of a grading worker: reads questions from its input, answers them, ends with it.

Started by pool.py as `python -m MODULE MEMORY_MIB SECONDS`; MODULE calls `serve`.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

from trainer.grading.frames import MAX_FRAME, pack, take

MIB = 1 << 20
KIB = 1 << 10
RECYCLED_SHARE = 0.5  # of its memory: a worker that has held so much ends, another takes over

Same = Callable[[str, str], bool]


def serve(load: Callable[[], Same]) -> None:
    """Answer until the input ends. `load` does the slow imports and returns what compares.

    A question that takes longer than SECONDS of wall time ends the process by SIGALRM, whatever
    code is running, and also when the pool's own process is gone. Any exception of the comparison
    ends it too: the state of a library after one is not known.
    """
    memory_mib, seconds = int(sys.argv[1]), float(sys.argv[2])
    questions, answers = take_pipes()
    confine(memory_mib * MIB)
    try:
        same = load()
    except ImportError as error:
        answers.write(pack({"error": str(error)}))
        return
    answers.write(pack({"ready": True}))
    buffer = bytearray()
    while data := questions.read(MAX_FRAME):
        buffer += data
        if (message := take(buffer)) is None:
            continue  # one question at a time, so never two in the buffer
        signal.setitimer(signal.ITIMER_REAL, seconds)
        found = any(same(message["answer"], truth) for truth in message["truths"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        last = peak_memory() > RECYCLED_SHARE * memory_mib * MIB
        answers.write(pack({"id": message["id"], "same": bool(found), "last": last}))
        if last:
            return


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Input and output for messages alone: what a library prints goes nowhere."""
    questions, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return questions, answers


def peak_memory() -> int:
    """Most bytes this program has held at once; 0 where Linux' /proc is missing.

    Not getrusage, whose figure is inherited from the process that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
    except OSError:
        return 0
    return int(lines["VmHWM"].split()[0]) * KIB


def confine(memory: int) -> None:
    """Bounds on this process: bytes of address space, no files written, no core dump."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
