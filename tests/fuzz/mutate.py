"""Inputs from seeds: text cut, doubled and spliced; JSON with single values replaced.

Everything is drawn from the `random.Random` that is handed in, so a case is made again from its
seed and number.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

MOST_CHARS = 20_000  # of one input: enough for what is quadratic to show
MOST_STEPS = 6  # changes to one seed
REPEATS = (2, 10, 100, 2_000)

_PIECE = re.compile(r"\\[A-Za-z]+|[A-Za-z]+|[0-9]+|\s+|.", re.DOTALL)
ODD = [
    *(
        "\0",
        "\x1b[2J",
        "\ud800",
        "\udfff",
        "\u2028",
        "\ufeff",
        "\u0661",
        "\u00b2",
        "\u2212",
        "\x85",
    ),
    *("9" * 5_000, "-0", "1e400", "1e-400", "0.1e9", "NaN", "Infinity", "null", "true", "'", '"'),
    *("(", ")", "{", "}", "[", "]", ",", ":", "=", "\\", "$", "%", "\n", "\t", "../", "\\u0000"),
    *(
        "\\boxed{",
        "</think>",
        "^{9^{9",
        "__import__('os')",
        "${oc.env:HOME}",
        "_target_",
        "<|end|>",
    ),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "0", "1e400", "\0", "../x", "a" * 5_000, "auto"),
    *([], {}, [[]], [None], [0] * 50, {"": 0}, {"a": {"b": []}}, {"_target_": "os.system"}),
]
MISSING = object()


def mutate_text(rng: random.Random, seeds: Sequence[str]) -> str:
    """One of `seeds` after a few random changes."""
    text = rng.choice(seeds)
    for _ in range(rng.randint(1, MOST_STEPS)):
        start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        if rng.random() < 0.5:
            end = min(end, start + 8)  # small changes reach deeper than large ones
        kind = rng.randrange(6)
        if kind == 0:
            middle = ""
        elif kind == 1:
            middle = text[start:end] * rng.choice(REPEATS)
        elif kind == 2:
            middle = rng.choice(ODD)
        elif kind == 3:
            middle = text[start:end] + rng.choice(_PIECE.findall(rng.choice(seeds)) or [""])
        elif kind == 4:
            other = rng.choice(seeds)
            at = rng.randint(0, len(other))
            middle = other[at : at + rng.randint(0, 40)]
        else:
            middle = "".join(chr(rng.randrange(0x20, 0x3000)) for _ in range(rng.randint(1, 3)))
        text = (text[:start] + middle + text[end:])[:MOST_CHARS]
    return text


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A copy of plain JSON with one node replaced, removed, renamed, doubled or buried."""
    places = list(_places(value))
    copy = json.loads(json.dumps(value))
    if not places:
        return rng.choice(VALUES)
    *path, last = rng.choice(places)
    parent = copy
    for key in path:
        parent = parent[key]
    kind = rng.randrange(8)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(["", "bogus", "auto_map", "_target_", "id", "a.b"])] = parent.pop(last)
    elif kind == 2:
        parent[last] = [parent[last]] * rng.choice((1, 3))
    elif kind == 3:
        for _ in range(rng.choice((1, 60))):
            parent[last] = {"x": parent[last]} if rng.random() < 0.5 else [parent[last]]
    else:
        parent[last] = rng.choice(VALUES)
    return copy


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Paths to every node below `value`."""
    children = value.items() if isinstance(value, dict) else []
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        yield (*path, key)
        yield from _places(child, (*path, key))


def mutate_json(rng: random.Random, seeds: Sequence[str]) -> str:
    """JSON of the seeds' shape, mostly; now and then changed as text."""
    seed = rng.choice(seeds)
    if rng.random() < 0.2:
        return mutate_text(rng, seeds)
    try:
        value = json.loads(seed)
    except ValueError:
        return mutate_text(rng, [seed])
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = mutate_value(rng, value)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5)


def mutate_lines(rng: random.Random, seeds: Sequence[str]) -> str:
    """A few lines of JSON, some of them changed."""
    lines = [
        mutate_json(rng, seeds) if rng.random() < 0.5 else rng.choice(seeds)
        for _ in range(rng.randint(1, 4))
    ]
    return rng.choice(("\n", "\n", "\r\n", "\n\n")).join([*lines, ""])


def tensor_file(header: str, size: int) -> str:
    """A safetensors file of zeros, bytes as latin-1 text."""
    text = header.encode("utf-8", "surrogatepass")
    return (struct.pack("<Q", len(text)) + text + bytes(size)).decode("latin-1")


def mutate_tensors(rng: random.Random, seeds: Sequence[str]) -> str:
    """A seed of `tensor_file` with another header, or with any bytes changed."""
    content = rng.choice(seeds).encode("latin-1")
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.7:
        changed = mutate_json(rng, [header.decode("utf-8", "replace")])
        return tensor_file(changed, rng.choice((len(data), len(data), 0, len(data) + 1)))
    claimed = rng.choice((0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1))
    if rng.random() < 0.5:
        content = struct.pack("<Q", max(0, claimed)) + header + data
    return mutate_bytes(rng, [content.decode("latin-1")])


def mutate_bytes(rng: random.Random, seeds: Sequence[str]) -> str:
    """A seed with single bytes changed, or cut short; bytes as latin-1 text."""
    content = bytearray(rng.choice(seeds).encode("latin-1"))
    for _ in range(rng.randint(1, MOST_STEPS)):
        if content:
            content[rng.randrange(len(content))] = rng.choice(
                (0, 1, 127, 128, 255, rng.randrange(256))
            )
    cut = len(content) if rng.random() < 0.7 else rng.randint(0, len(content))
    return bytes(content[:cut]).decode("latin-1")


def shrink(text: str, fails: Callable[[str], bool], tries: int = 400) -> str:
    """A shorter text that fails as well: ever smaller pieces are left out while it does."""
    size = len(text) // 2
    while size and tries:
        at = 0
        while at < len(text) and tries:
            shorter = text[:at] + text[at + size :]
            tries -= 1
            if fails(shorter):
                text = shorter
            else:
                at += size
        size //= 2
    return text
