"""Seeds as pure functions of what they seed, so no order of events can change a sample."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *path: int | str) -> int:
    """A 63-bit seed for what `path` names, e.g. derive_seed(0, "sample", step, group, k).

    A hash, not arithmetic: neighbouring steps or samples share no structure.
    """
    text = "/".join(map(str, (run_seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
