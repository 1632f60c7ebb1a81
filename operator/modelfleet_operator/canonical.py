"""Rendering manifests as the API server would give them back, and asking whether an observed object has them.

PURE. Server-side apply of an unchanged object costs the API server as much as a change, so desired leaves are
compared with observed ones first. Only the leaves we render count: defaults and other managers' fields are not ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from modelfleet_operator.state import Manifest

_BINARY = {suffix: Decimal(1024**power) for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
}
# The lists of a pod that the API server keys by these members; every other list is compared in order.
_LIST_KEYS = ("name", "mountPath", "containerPort", "uid")
_QUANTITY_PARENTS = frozenset({"requests", "limits"})
# Empty maps that say nothing. Any other `{}` means something: emptyDir, or a label selector that matches everything.
_EMPTY_IS_ABSENT = frozenset(
    {"labels", "annotations", "data", "matchLabels", "nodeSelector", "resources", "requests", "limits"}
)
# core/v1 members without a pointer: the API server leaves out their false or 0. Where it keeps them they are drift.
_ZERO_IS_ABSENT = frozenset(
    {"hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty", "readOnly", "initialDelaySeconds", "hostPort"}
)


def quantity_value(quantity: str | int | float) -> Decimal:
    """The number a Kubernetes quantity stands for (resource.Quantity). ValueError where it is none."""
    text = str(quantity).strip()
    suffix = next((suffix for suffix in (*_BINARY, *_DECIMAL) if suffix and text.endswith(suffix)), "")
    factor = _BINARY[suffix] if suffix in _BINARY else _DECIMAL[suffix]
    try:
        value = Decimal(text.removesuffix(suffix)) * factor
    except InvalidOperation as error:
        raise ValueError(f"{quantity!r} is no quantity") from error
    if not value.is_finite():
        raise ValueError(f"{quantity!r} is no quantity")
    return value


def canonical_quantity(quantity: str | int | float) -> str:
    """The quantity with the largest suffix that leaves a whole number, as the API server gives it: `1000m` is `1`."""
    value = quantity_value(quantity)
    families: list[Mapping[str, Decimal]] = [_DECIMAL]
    if str(quantity).strip().endswith("i"):
        families.insert(0, _BINARY)
    for family in families:
        for suffix, factor in sorted(family.items(), key=lambda item: -item[1]):
            if value and value % factor == 0:
                return f"{int(value / factor)}{suffix}"
    return str(quantity) if value else "0"


def drop_empty(value: Any) -> Any:
    """The value without None, empty lists and those empty maps that the API server drops."""
    if isinstance(value, Mapping):
        cleaned = {key: drop_empty(item) for key, item in value.items()}
        return {
            key: item
            for key, item in cleaned.items()
            if item not in (None, []) and not (item == {} and key in _EMPTY_IS_ABSENT)
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [drop_empty(item) for item in value]
    return value


def digest(value: Any) -> str:
    """A stable hash of a JSON value: 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def contains(observed: Any, desired: Any, *, key: str = "") -> bool:
    """Whether every leaf of `desired` is in `observed`; quantities compare by value, keyed lists by key."""
    if isinstance(desired, Mapping):
        if not isinstance(observed, Mapping):
            return False
        if key in _QUANTITY_PARENTS:
            return observed.keys() == desired.keys() and all(
                _equal_quantity(observed[name], item) for name, item in desired.items()
            )
        return all(
            contains(observed[name], item, key=name) if name in observed else _is_left_out(name, item)
            for name, item in desired.items()
        )
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        return _list_contains(observed, desired)
    if key in ("sizeLimit", "divisor"):
        return _equal_quantity(observed, desired)
    return bool(observed == desired)


def _is_left_out(name: str, desired: Any) -> bool:
    """Whether the API server would give such a member back as absent."""
    if desired is False or (desired == 0 and isinstance(desired, int)):
        return name in _ZERO_IS_ABSENT
    return desired is None or desired in ("", [], {})


def _list_contains(observed: Any, desired: Sequence[Any]) -> bool:
    """Same length and, element by element, contained: an extra element in a list of ours is drift."""
    if not isinstance(observed, Sequence) or isinstance(observed, str) or len(observed) != len(desired):
        return False
    list_key = _list_key(desired)
    if list_key is None:
        return all(contains(have, want) for have, want in zip(observed, desired, strict=True))
    by_key = {item.get(list_key): item for item in observed if isinstance(item, Mapping)}
    return all(item[list_key] in by_key and contains(by_key[item[list_key]], item) for item in desired)


def _list_key(items: Sequence[Any]) -> str | None:
    for candidate in _LIST_KEYS:
        if items and all(isinstance(item, Mapping) and candidate in item for item in items):
            return candidate
    return None


def _equal_quantity(observed: Any, desired: Any) -> bool:
    if observed == desired:
        return True
    if isinstance(observed, bool) or not isinstance(observed, str | int | float):
        return False
    try:
        return quantity_value(observed) == quantity_value(desired)
    except ValueError:
        return False


def is_up_to_date(observed: Manifest | None, desired: Manifest) -> bool:
    """Whether applying `desired` would change nothing that we mean."""
    return observed is not None and contains(observed, desired)
