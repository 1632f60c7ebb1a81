"""Refused and contested writes wait; changed manifests never do. Exact times."""

from __future__ import annotations

from typing import Any

from modelfleet_operator.attempts import Attempts, ChildKey, child_key
from modelfleet_operator.state import ApplyError

REFUSED = ApplyError(kind="Service", name="m", status_code=422, message="no")
KEY = ChildKey("Service", "m")


def manifest(port: int = 80) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "m"}, "spec": {"ports": [{"port": port}]}}


def test_a_refused_manifest_waits_longer_each_time_up_to_a_limit() -> None:
    attempts, now, delays = Attempts(generation=1), 0.0, []
    for _ in range(6):
        attempts.record_error(manifest(), REFUSED, now=now)
        wait = attempts.next_attempt(now=now)
        assert wait is not None
        assert not attempts.may_write(manifest(), now=now + wait - 0.01)
        assert attempts.may_write(manifest(), now=now + wait)
        delays.append(wait)
        now += wait
    assert delays == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]


def test_a_changed_manifest_is_tried_at_once_and_its_success_forgets_the_refusal() -> None:
    attempts = Attempts(generation=1)
    attempts.record_error(manifest(), REFUSED, now=0.0)
    assert list(attempts.errors) == [REFUSED]
    assert attempts.may_write(manifest(port=81), now=0.0)
    attempts.record_success(manifest(port=81), now=0.0)
    assert not attempts.errors
    assert attempts.next_attempt(now=0.0) is None


def test_a_refused_child_that_is_no_longer_to_be_written_is_forgotten() -> None:
    attempts = Attempts(generation=1)
    attempts.record_error(manifest(), REFUSED, now=0.0)
    attempts.keep_only({child_key(manifest())})
    assert len(attempts.errors) == 1
    attempts.keep_only(set())
    assert not attempts.errors


def test_writing_the_same_again_and_again_is_slowed_down_and_a_quiet_time_forgives() -> None:
    attempts = Attempts(generation=1)
    for count in range(4):
        attempts.record_success(manifest(), now=float(count))
        assert attempts.may_write(manifest(), now=float(count))
    attempts.record_success(manifest(), now=5.0)
    assert not attempts.may_write(manifest(), now=14.99)
    assert attempts.next_attempt(now=5.0) == 10.0
    assert attempts.may_write(manifest(), now=15.0)
    attempts.record_success(manifest(), now=400.0)
    assert attempts.may_write(manifest(), now=400.0)


def test_keys_name_kind_and_name() -> None:
    assert child_key(manifest()) == KEY


def test_a_child_that_is_due_but_held_back_by_another_is_looked_at_in_a_second_not_at_once() -> None:
    attempts = Attempts(generation=1)
    attempts.record_error(manifest(), REFUSED, now=0.0)
    assert attempts.next_attempt(now=31.0) == 1.0
