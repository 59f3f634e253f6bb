"""What every test needs before torch is imported, and the visible skip of GPU tests."""

import os
from pathlib import Path

# With the default policy OpenMP threads spin while they wait, and small ops become some 15 times
# slower as soon as one other process is busy (docs/benchmarks.md). Read once, when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns after each fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download fails instead of hanging
os.environ.setdefault("MPLBACKEND", "Agg")  # plots without a display

import hypothesis
import pytest

# A shared machine makes any one example slow; a test that is too slow shows in its own time.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny random model, for `model.path`; tests must not write to it."""
    from tests.helpers import write_tiny_base  # imports torch: only for tests that ask for it

    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu`, with the reason, where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
