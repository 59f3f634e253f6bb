"""A grading worker for bench.soak: no answer is right, and each takes long enough to be killed at.

Stands in for math-verify in the pool's own workers, `python -m bench.soak_worker MIB SECONDS`.
"""

from __future__ import annotations

import time

from trainer.grading.worker import Same, serve

SECONDS = 0.005


def load() -> Same:
    """What compares, which is slow and knows one answer: different."""

    def same(answer: str, truth: str) -> bool:
        time.sleep(SECONDS)
        return False

    return same


if __name__ == "__main__":
    serve(load)
