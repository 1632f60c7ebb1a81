"""Fields of a `config.json`, checked as they are read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from modelfleet_engine.errors import ModelError


def positive_integer(raw: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """`raw[name]`, or `default` where it is absent or null.

    Raises:
        ModelError: it is no positive integer.
    """
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {name} must be a positive integer, got {raw.get(name)!r}")
    return value


def section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object `raw[name]`, empty where it is absent or null.

    Raises:
        ModelError: it is no object.
    """
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelError(f"config.json: {name} must be an object, got {value!r}")
    return value


def positive_number(raw: Mapping[str, Any], name: str, *, default: float | None) -> float | None:
    """`raw[name]` where it is there, null included; else `default`. None is "off".

    Raises:
        ModelError: it is neither null nor a positive number.
    """
    value = raw.get(name, default)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= sys.float_info.max:  # NaN and infinity are refused
        raise ModelError(f"config.json: {name} must be a positive number or null, got {value!r}")
    return float(value)
