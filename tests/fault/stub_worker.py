"""A grading worker whose answers are commands: `python -m tests.fault.stub_worker MIB SECONDS`.

"right" is right, "wrong" is wrong; the other answers do to the worker what they are called.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from trainer.grading.frames import pack
from trainer.grading.worker import Same, serve

REPLIES = 4  # the descriptor that take_pipes left: questions are 3


def hang() -> None:
    while True:
        pass


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    hang()


def eat_memory() -> None:
    while True:
        held.append(bytes(1 << 24))


def flood(fd: int, data: bytes = b"x" * 65536) -> None:
    while True:
        os.write(fd, data)


def write_file() -> None:
    with open("HACKED", "w") as file:
        file.write("x")


COMMANDS = {
    "hang": hang,
    "sleep": lambda: time.sleep(3_600),
    "ignore signals": ignore_signals,
    "memory": eat_memory,
    "exit": lambda: os._exit(0),
    "raise": lambda: 1 / 0,
    "recursion": lambda: COMMANDS["recursion"](),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "garbage": lambda: os.write(REPLIES, b"\x00\x00\x00\x04nope"),
    "long frame": lambda: os.write(REPLIES, b"\xff\xff\xff\xff"),
    "not an object": lambda: os.write(REPLIES, b"\x00\x00\x00\x02[]"),
    "other id": lambda: os.write(REPLIES, pack({"id": 0, "same": True, "last": False})),
    "flood replies": lambda: flood(REPLIES),
    "close": lambda: (os.close(REPLIES), hang()),
    "write file": write_file,
}
held: list[bytes] = []
HARMLESS = {
    "print": lambda: print("x" * 1_000_000),
    "stdout": lambda: [os.write(1, b"x" * 65536) for _ in range(100)],
    "stderr": lambda: sys.stderr.write("x" * 1_000_000),
    "slow": lambda: time.sleep(0.2),
}


def fill() -> None:
    """Touch more than half the memory that a test allows, 512 MiB."""
    if not held:  # it is called for each truth
        held.append(b"x" * (300 << 20))


def same(answer: str, truth: str) -> bool:
    if answer in COMMANDS:
        COMMANDS[answer]()
    if answer == "fill":
        fill()
    if answer in HARMLESS:
        HARMLESS[answer]()
    if answer.startswith("environment "):
        return answer.removeprefix("environment ") in os.environ
    return answer == truth == "right" or (answer, truth) == ("(x+1)^2-2x", "x^2+1")


def load() -> Same:
    if len(sys.argv) > 3:
        raise ImportError(sys.argv[3])
    bytes(1 << 26)  # a library needs memory to load
    return same


if __name__ == "__main__":
    serve(load)
