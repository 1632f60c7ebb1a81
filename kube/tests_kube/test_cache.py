"""The cache's one rule: the newest version wins, from wherever it comes."""

from __future__ import annotations

from typing import Any

from modelfleet_kube.cache import REMEMBERED_DELETIONS, ObjectCache, by_label
from modelfleet_kube.resources import ObjectKey

A = ObjectKey("ns", "a")
MODEL = ObjectKey("ns", "m")


def item(name: str, version: int, *, model: str | None = "m") -> dict[str, Any]:
    labels = {"model": model} if model else {}
    return {"metadata": {"namespace": "ns", "name": name, "resourceVersion": str(version), "labels": labels}}


def changes(cache: ObjectCache, *items: dict[str, Any], version: int) -> list[tuple[str, str]]:
    return [(change.type.value, change.key.name) for change in cache.replace(items, version=version)]


def test_an_older_or_equal_version_changes_nothing() -> None:
    cache = ObjectCache()
    newest = item("a", 10)
    assert cache.upsert(newest) is not None
    assert cache.upsert(item("a", 9)) is None
    assert cache.upsert(item("a", 10)) is None
    assert cache.get(A) is newest


def test_versions_compare_as_numbers() -> None:
    cache = ObjectCache()
    cache.upsert(item("a", 99))
    assert cache.upsert(item("a", 100)) is not None


def test_a_late_answer_to_our_own_write_does_not_bring_a_deleted_object_back() -> None:
    cache = ObjectCache()
    cache.upsert(item("a", 5))
    cache.remove(item("a", 8))
    assert cache.upsert(item("a", 7)) is None
    assert len(cache) == 0


def test_the_deletion_of_an_earlier_incarnation_leaves_the_new_one() -> None:
    cache = ObjectCache()
    cache.upsert(item("a", 9))
    assert cache.remove(item("a", 8)) is None
    assert cache.get(A) is not None


def test_an_object_created_again_is_taken() -> None:
    cache = ObjectCache()
    cache.upsert(item("a", 5))
    cache.remove(item("a", 8))
    assert cache.upsert(item("a", 9)) is not None


def test_a_list_tells_what_was_added_changed_and_deleted_and_nothing_else() -> None:
    cache = ObjectCache()
    for name in ("gone", "same", "changed"):
        cache.upsert(item(name, 5))
    told = changes(cache, item("same", 5), item("changed", 6), item("new", 7), version=8)
    assert told == [("DELETED", "gone"), ("MODIFIED", "changed"), ("ADDED", "new")]


def test_a_list_older_than_a_cached_object_does_not_delete_it() -> None:
    cache = ObjectCache()
    cache.upsert(item("a", 9))
    assert changes(cache, version=8) == []
    assert cache.get(A) is not None


def test_a_list_older_than_a_deletion_does_not_bring_the_object_back() -> None:
    cache = ObjectCache()
    cache.upsert(item("a", 5))
    cache.remove(item("a", 8))
    assert changes(cache, item("a", 5), version=6) == []


def test_the_index_follows_a_label_that_changes() -> None:
    cache = ObjectCache(index_by=by_label("model"))
    cache.upsert(item("b", 1))
    cache.upsert(item("a", 2))
    assert [found["metadata"]["name"] for found in cache.indexed(MODEL)] == ["a", "b"]
    cache.upsert(item("a", 3, model="other"))
    cache.upsert(item("b", 4, model=None))
    assert cache.indexed(MODEL) == []
    assert len(cache.indexed(ObjectKey("ns", "other"))) == 1


def test_remembered_deletions_are_bounded() -> None:
    cache = ObjectCache()
    for number in range(REMEMBERED_DELETIONS + 1):
        cache.remove(item(f"x{number}", 5))
    assert cache.upsert(item("x0", 4)) is not None
    assert cache.upsert(item("x1", 4)) is None
