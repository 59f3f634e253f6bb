"""How settings are read: a mapping into frozen dataclasses, every value checked, by its dotted key.

Ranges are marks on the annotations (`PosInt`, `Share`, ...); config.py uses them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CONF = Path(__file__).resolve().parent.parent / "conf"
MAX_INT = 2**63 - 1  # what fits a tensor's index, and a float


class ConfigError(ValueError):
    """A setting that cannot work; the message starts with its dotted key."""


@dataclass(frozen=True)
class Range:
    """Range mark for a number: more than `low`, or at least with `closed`; at most `most`."""

    low: float = 0.0
    closed: bool = False
    most: float = math.inf


Pos = typing.Annotated[float, Range()]
NonNeg = typing.Annotated[float, Range(closed=True)]
Share = typing.Annotated[float, Range(closed=True, most=1.0)]
Signed = typing.Annotated[float, Range(low=-1.0, most=1.0)]
PosInt = typing.Annotated[int, Range()]
Count = typing.Annotated[int, Range(closed=True)]


def build_settings(cls: type, raw: Any, where: str) -> Any:
    """`raw` as the dataclass `cls`; ConfigError with the dotted key, which `where` begins.

    Unknown and missing keys, wrong types, nan and values out of range are refused.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or 'config'}: expected a group of settings, got {raw!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    prefix = f"{where}." if where else ""
    for key in raw:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: no such setting; there are {', '.join(hints)}")
    for key in hints:
        if key not in raw:
            raise ConfigError(f"{prefix}{key}: missing")
    return cls(**{key: _value(hints[key], raw[key], f"{prefix}{key}") for key in hints})


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type, or ConfigError; only an int for a float is cast."""
    if dataclasses.is_dataclass(hint):
        return build_settings(hint, value, key)
    if typing.get_origin(hint) is typing.Annotated:
        kind, limit = typing.get_args(hint)
        return _in_range(_value(kind, value, key), limit, key)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"{key}: {value!r} is not one of {allowed}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{key}: expected a list that is not empty, got {value!r}")
        return tuple(_value(typing.get_args(hint)[0], item, key) for item in value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: expected a group of settings, got {value!r}")
        kind = typing.get_args(hint)[1]
        return {name: _value(kind, item, f"{key}.{name}") for name, item in value.items()}
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None
        return None if value is None else _value(typing.get_args(hint)[0], value, key)
    if type(value) is int and abs(value) > MAX_INT:
        raise ConfigError(f"{key}: must be within ±{MAX_INT}, got {value.bit_length()} bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{key}: expected {hint.__name__}, got {value!r}")
    return value


def _in_range(value: float, limit: Range, key: str) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"{key}: {value} is not a finite number")
    if value < limit.low or (value == limit.low and not limit.closed):
        bound = "at least" if limit.closed else "more than"
        raise ConfigError(f"{key}: must be {bound} {limit.low:g}, got {value}")
    if value > limit.most:
        raise ConfigError(f"{key}: must be at most {limit.most:g}, got {value}")
    return value


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def changes(before: dict[str, Any], now: dict[str, Any], free: tuple[str, ...] = ()) -> list[str]:
    """A line for each key whose value differs, but for keys that begin as one of `free`."""
    return [
        f"  {key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]


def check_named(overrides: Sequence[str]) -> None:
    """ConfigError for an override without a name, like "+=", where hydra fails an assertion."""
    for override in overrides:
        if override.lstrip("+~").startswith("="):
            raise ConfigError(f"{override}: a setting without a name; expected NAME=VALUE")


def compose_settings(folder: str, overrides: Sequence[str]) -> dict[str, Any]:
    """conf/FOLDER/config.yaml with hydra's overrides, as a plain mapping.

    For commands beside trainer.run, which hydra starts itself. ConfigError for what it refuses.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_named(overrides)
    try:
        with initialize_config_dir(str(CONF / folder), version_base="1.3"):
            return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    # OSError: a key longer than a file name; RecursionError: 1,000 brackets.
    except (HydraException, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
