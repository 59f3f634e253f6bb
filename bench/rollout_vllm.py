"""vLLM's side of bench.rollout, run by the Python of its own environment: `rollout_vllm.py JOB`.

A line on the standard input is a run of the whole work; its seconds come back. See process.py.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


def answer(content: dict[str, float]) -> None:
    """A line of JSON on the original standard output."""
    print(json.dumps(content), file=sys.__stdout__, flush=True)


def run(job: dict[str, Any]) -> None:
    """The whole work for each line, until the input ends."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less on few cores
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams  # reads its environment when it is imported

    longest = max(map(len, job["prompts"])) + max(job["lengths"])
    model = LLM(job["folder"], dtype=job["dtype"], max_model_len=2 * longest)
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    sampling = [
        SamplingParams(temperature=1.0, max_tokens=n, min_tokens=n, ignore_eos=True)
        for n in job["lengths"]
    ]
    answer({"ready": 1})
    while sys.stdin.readline():
        start = time.perf_counter()
        found = model.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert [len(x.outputs[0].token_ids) for x in found] == job["lengths"]
        answer({"seconds": seconds})
    answer({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


if __name__ == "__main__":
    sys.stdout = sys.stderr  # the conversation alone goes to the standard output
    run(json.loads(sys.argv[1]))
