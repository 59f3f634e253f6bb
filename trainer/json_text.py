"""JSON from outside as Python objects; imports nothing heavy, as readers of data must not."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, **settings: Any) -> Any:
    """json.loads, but ValueError for brackets nested too deep, too."""
    try:
        return json.loads(text, **settings)
    except RecursionError as error:
        raise ValueError(str(error)) from error
