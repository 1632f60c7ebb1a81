"""Objects of one kind as last seen, from a list, a watch and our own writes, whichever is newest.

PURE. Must not do I/O, and must never let an older version replace a newer one or bring a deleted object back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from modelfleet_kube.resources import ObjectKey, key_of, resource_version_of

# A late answer to our own write may arrive after the deletion: remember that many deletions. One costs ~100 bytes.
REMEMBERED_DELETIONS = 4096


IndexBy = Callable[[dict[str, Any]], str | None]


def by_label(label: str) -> IndexBy:
    """Files objects under the value of a label."""

    def index_by(item: dict[str, Any]) -> str | None:
        value: str | None = (item["metadata"].get("labels") or {}).get(label)
        return value

    return index_by


class ChangeType(StrEnum):
    """What happened to an object, from the cache's point of view."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change: the object after it (a deletion: as last seen), and before it where it was cached."""

    type: ChangeType
    object: dict[str, Any]
    before: dict[str, Any] | None = None

    @property
    def key(self) -> ObjectKey:
        """Whose change it is."""
        return key_of(self.object)


class ObjectCache:
    """Keyed by namespace and name, and indexed by the namespace and what `index_by` says of an object.

    Objects in it are shared: whoever gets one must not change it.
    """

    def __init__(self, *, index_by: IndexBy | None = None) -> None:
        self._index_by = index_by
        self._objects: dict[ObjectKey, dict[str, Any]] = {}
        self._index: dict[ObjectKey, set[ObjectKey]] = {}
        self._deleted: OrderedDict[ObjectKey, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(list(self._objects.values()))

    def get(self, key: ObjectKey) -> dict[str, Any] | None:
        """The object, or None."""
        return self._objects.get(key)

    def indexed(self, value: ObjectKey) -> list[dict[str, Any]]:
        """The objects in `value.namespace` that the index files under `value.name`, ordered by name."""
        return [self._objects[key] for key in sorted(self._index.get(value, ()))]

    def index_value(self, item: dict[str, Any]) -> ObjectKey | None:
        """Where the index files an object, None for nowhere."""
        value = self._index_by(item) if self._index_by is not None else None
        return ObjectKey(item["metadata"].get("namespace", ""), value) if value is not None else None

    def upsert(self, item: dict[str, Any]) -> Change | None:
        """Takes an object seen or written; None where what is cached is as new, or it is known to be deleted."""
        key, version = key_of(item), resource_version_of(item)
        if version <= self._deleted.get(key, -1):
            return None
        before = self._objects.get(key)
        if before is not None and version <= resource_version_of(before):
            return None
        _strip(item)
        if before is not None:
            self._unindex(before)
        self._objects[key] = item
        self._deleted.pop(key, None)
        value = self.index_value(item)
        if value is not None:
            self._index.setdefault(value, set()).add(key)
        return Change(type=ChangeType.ADDED if before is None else ChangeType.MODIFIED, object=item, before=before)

    def remove(self, item: dict[str, Any]) -> Change | None:
        """Takes a deletion (the object of a DELETED event); None where a newer object of that name is cached."""
        key, version = key_of(item), resource_version_of(item)
        before = self._objects.get(key)
        if before is not None and version < resource_version_of(before):
            return None
        self._remember_deletion(key, version=version)
        if before is None:
            return None
        del self._objects[key]
        self._unindex(before)
        return Change(type=ChangeType.DELETED, object=before, before=before)

    def replace(self, items: Iterable[dict[str, Any]], *, version: int) -> list[Change]:
        """Takes a whole list made at `version`; tells what differs, deletions that no watch told included."""
        listed = {key_of(item): item for item in items}
        changes = []
        for key, before in list(self._objects.items()):
            # An object newer than the list was created or changed while the list was under way.
            if key not in listed and resource_version_of(before) <= version:
                metadata = {**before["metadata"], "resourceVersion": str(version)}
                changes.append(self.remove({**before, "metadata": metadata}))
        changes.extend(self.upsert(item) for item in listed.values())
        return [change for change in changes if change is not None]

    def _remember_deletion(self, key: ObjectKey, *, version: int) -> None:
        self._deleted[key] = version
        self._deleted.move_to_end(key)
        if len(self._deleted) > REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)

    def _unindex(self, item: dict[str, Any]) -> None:
        value = self.index_value(item)
        keys = self._index.get(value) if value is not None else None
        if value is None or keys is None:
            return
        keys.discard(key_of(item))
        if not keys:
            del self._index[value]


def _strip(item: dict[str, Any]) -> None:
    # About half of an object's bytes, and nobody here reads them.
    item["metadata"].pop("managedFields", None)
