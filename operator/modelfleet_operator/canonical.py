"""Rendering manifests as the API server would give them back, and asking whether an observed object has them.

PURE. Server-side apply of an unchanged object costs the API server as much as a change, so desired leaves are
compared with observed ones first. Only the leaves we render count: defaults and other managers' fields are not ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from modelfleet_operator.state import Manifest

_BINARY = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "Pi": 1024**5, "Ei": 1024**6}
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


def quantity_value(quantity: str | int | float) -> Decimal:
    """The number a Kubernetes quantity stands for (resource.Quantity). ValueError where it is none."""
    text = str(quantity).strip()
    for suffix, factor in _BINARY.items():
        if text.endswith(suffix):
            return Decimal(text[: -len(suffix)]) * factor
    if text and text[-1] in _DECIMAL and not text[-1].isdigit():
        return Decimal(text[:-1]) * _DECIMAL[text[-1]]
    return Decimal(text)


def drop_empty(value: Any) -> Any:
    """The value without None, empty maps and empty lists: the API server would drop them (`{}` volumes excepted)."""
    if isinstance(value, Mapping):
        cleaned = {key: drop_empty(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item not in (None, []) and not _is_noise(key, item)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [drop_empty(item) for item in value]
    return value


def _is_noise(key: str, item: Any) -> bool:
    # `emptyDir: {}` and an empty pod security context mean something; empty labels, annotations or data do not.
    return item == {} and key not in ("emptyDir", "securityContext")


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
        return all(name in observed and contains(observed[name], item, key=name) for name, item in desired.items())
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        return _list_contains(observed, desired)
    if key in ("sizeLimit", "divisor"):
        return _equal_quantity(observed, desired)
    return bool(observed == desired)


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
    return quantity_value(observed) == quantity_value(desired)


def is_up_to_date(observed: Manifest | None, desired: Manifest) -> bool:
    """Whether applying `desired` would change nothing that we mean."""
    return observed is not None and contains(observed, desired)
