"""llama.cpp's side of bench.rollout, run by the Python of its own environment.

`rollout_llamacpp.py JOB`, JOB["folder"] with a `model.gguf`: all sequences decode as one batch, as
in its own batched examples, each with its own sampler, and leave it as they end. A line on the
standard input is a run of the whole work; its seconds come back. See process.py.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp as cpp

FILE_TYPES = {"float32": cpp.LLAMA_FTYPE_ALL_F32, "bfloat16": cpp.LLAMA_FTYPE_MOSTLY_BF16}
BATCH = 2048  # tokens of one call


def answer(content: dict[str, float]) -> None:
    """A line of JSON on the original standard output."""
    print(json.dumps(content), file=sys.__stdout__, flush=True)


def convert(source: Path, target: Path, dtype: str) -> None:
    """The model with its weights in `dtype`."""
    settings = cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = FILE_TYPES[dtype], True
    failed = cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(settings)
    )
    assert not failed


class Batched:
    """A model with room for all sequences of a job."""

    def __init__(self, file: Path, job: dict[str, Any]) -> None:
        self.job = job
        self.model = cpp.llama_model_load_from_file(
            str(file).encode(), cpp.llama_model_default_params()
        )
        settings = cpp.llama_context_default_params()
        rows = len(job["prompts"])
        settings.n_ctx = rows * (max(map(len, job["prompts"])) + max(job["lengths"]) + 32)
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max, settings.kv_unified = rows, False
        settings.n_threads = settings.n_threads_batch = job["threads"]
        self.context = cpp.llama_init_from_model(self.model, settings)
        self.batch = cpp.llama_batch_init(BATCH, 0, 1)
        self.samplers = [self._sampler(seed) for seed in range(rows)]

    def run(self) -> None:
        """Draws every sequence to its length."""
        cpp.llama_memory_clear(cpp.llama_get_memory(self.context), True)
        lengths, fed = self.job["lengths"], [len(ids) for ids in self.job["prompts"]]
        drawn = self._prefill()
        left = [n - 1 for n in lengths]
        while live := [row for row, n in enumerate(left) if n]:
            self.batch.n_tokens = 0
            for row in live:
                self._put(drawn[row], fed[row], row, True)
                fed[row] += 1
                left[row] -= 1
            self._decode()
            for at, row in enumerate(live):
                drawn[row] = cpp.llama_sampler_sample(self.samplers[row], self.context, at)

    def _prefill(self) -> dict[int, int]:
        """{row: its first token}; as many whole prompts a call as fit."""
        drawn: dict[int, int] = {}
        waiting = list(enumerate(self.job["prompts"]))
        while waiting:
            self.batch.n_tokens, last = 0, {}
            while waiting and self.batch.n_tokens + len(waiting[0][1]) <= BATCH:
                row, ids = waiting.pop(0)
                for position, token in enumerate(ids):
                    self._put(token, position, row, position == len(ids) - 1)
                last[row] = self.batch.n_tokens - 1
            self._decode()
            for row, at in last.items():
                drawn[row] = cpp.llama_sampler_sample(self.samplers[row], self.context, at)
        return drawn

    def _put(self, token: int, position: int, row: int, wanted: bool) -> None:
        batch, at = self.batch, self.batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
        batch.n_tokens = at + 1

    def _decode(self) -> None:
        failed = cpp.llama_decode(self.context, self.batch)
        assert not failed, failed

    @staticmethod
    def _sampler(seed: int) -> Any:
        chain = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_temp(1.0))
        cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_dist(seed))
        return chain


def run(job: dict[str, Any]) -> None:
    """The whole work for each line, until the input ends."""
    cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        convert(Path(job["folder"]) / "model.gguf", file, job["dtype"])
        model = Batched(file, job)
        answer({"ready": 1})
        while sys.stdin.readline():
            start = time.perf_counter()
            model.run()
            answer({"seconds": time.perf_counter() - start})
    answer({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


if __name__ == "__main__":
    sys.stdout = sys.stderr  # the conversation alone goes to the standard output
    run(json.loads(sys.argv[1]))
