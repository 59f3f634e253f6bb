"""Messages between the pool and its workers: a length of 4 bytes, then JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct(">I")
# Below what a pipe holds (64 KiB on Linux), so that a write to an idle worker never blocks.
MAX_FRAME = 48 << 10


class FrameError(ValueError):
    """Bytes that are no message."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes. FrameError when it is longer than MAX_FRAME."""
    data = json.dumps(message).encode("ascii")  # lone surrogates come as escapes
    if len(data) > MAX_FRAME:
        raise FrameError(f"a message of {len(data)} bytes, the most is {MAX_FRAME}")
    return LENGTH.pack(len(data)) + data


def take(buffer: bytearray) -> dict[str, Any] | None:
    """The first message of `buffer`, which loses its bytes; None when it is not all there yet.

    Raises FrameError for a length above MAX_FRAME, as soon as that is read, and for what is no
    JSON object.
    """
    if len(buffer) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack_from(buffer)
    if size > MAX_FRAME:
        raise FrameError(f"a message of {size} bytes, the most is {MAX_FRAME}")
    end = LENGTH.size + size
    if len(buffer) < end:
        return None
    data = bytes(buffer[LENGTH.size : end])
    del buffer[:end]
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise FrameError(f"not an object: {type(message).__name__}")
    return message
