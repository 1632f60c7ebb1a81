"""Replicas that tell each other what they used: within the limit together, and little of it left unused."""

from __future__ import annotations

import pytest
from modelfleet_gateway.quota import Admitted, Limits, TenantQuota
from modelfleet_gateway.quota_sharing import Counted, ReplicaUse


def fleet(limits: Limits, count: int = 2) -> dict[str, TenantQuota]:
    quotas = {f"g{number}": TenantQuota(limits, replica=f"g{number}") for number in range(count)}
    for quota in quotas.values():
        quota.share(count)
    return quotas


def gossip(quotas: dict[str, TenantQuota], now: float, *, rounds: int = 2) -> None:
    """Everybody tells everybody; the second round confirms the first."""
    for _ in range(rounds):
        messages = {name: quota.local_use(now) for name, quota in quotas.items()}
        for name, quota in quotas.items():
            for sender, use in messages.items():
                if sender != name:
                    quota.remote_use(sender, use, now)


def admitted(quota: TenantQuota, now: float, count: int, *, tokens: int = 1) -> int:
    return sum(isinstance(quota.admit(now, tokens), Admitted) for _ in range(count))


def test_a_burst_at_all_replicas_at_once_stays_within_five_percent() -> None:
    quotas = fleet(Limits(requests_per_minute=60))

    assert [admitted(quota, 0.0, 100) for quota in quotas.values()] == [30, 30]


@pytest.mark.parametrize(("used", "at_each"), [(45, 5), (57, 1), (59, 1), (60, 0)])
def test_of_the_last_few_requests_each_replica_may_take_its_part_and_at_least_one(used: int, at_each: int) -> None:
    quotas = fleet(Limits(requests_per_minute=60), 3)
    while used > 0:
        used -= admitted(quotas["g0"], 0.0, used)
        gossip(quotas, 0.0)

    assert [admitted(quota, 0.1, 100) for quota in quotas.values()] == [at_each] * 3


def test_all_of_the_limit_can_be_used_at_one_replica() -> None:
    quotas = fleet(Limits(requests_per_minute=60), 3)
    total = 0
    for tenth in range(30):
        total += admitted(quotas["g0"], tenth / 10, 100)
        gossip(quotas, tenth / 10)

    assert 57 <= total <= 60


def test_one_use_counts_at_every_replica_once_however_often_it_is_told() -> None:
    quotas = fleet(Limits(requests_per_minute=60, tokens_per_minute=1000))
    admitted(quotas["g0"], 0.0, 5, tokens=20)
    gossip(quotas, 0.1, rounds=7)

    # A replica learns of the use a little later than it was, so only `reset` differs.
    for name, reset in (("g0", "59.9s"), ("g1", "1m0s")):
        assert quotas[name].headers(0.1) == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "55",
            "x-ratelimit-reset-requests": reset,
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "900",
            "x-ratelimit-reset-tokens": reset,
        }


def test_an_estimate_given_back_at_one_replica_is_given_back_at_the_others() -> None:
    quotas = fleet(Limits(tokens_per_minute=1000))
    quotas["g0"].admit(0.0, 400)
    gossip(quotas, 0.1)
    quotas["g0"].settle(5.0, 150, 400, admitted_at=0.0)
    gossip(quotas, 5.1)

    assert [quota.headers(5.1)["x-ratelimit-remaining-tokens"] for quota in quotas.values()] == ["850", "850"]


def test_requests_at_a_time_are_counted_over_all_replicas() -> None:
    quotas = fleet(Limits(max_concurrent=4))
    assert [admitted(quota, 0.0, 5) for quota in quotas.values()] == [2, 2]
    gossip(quotas, 0.1)
    assert [admitted(quota, 0.2, 5) for quota in quotas.values()] == [0, 0]

    for _ in range(2):
        quotas["g0"].released()
    gossip(quotas, 0.3)

    assert admitted(quotas["g1"], 0.4, 1) == 1


def test_tokens_of_the_day_are_shared_and_outlive_the_replica_that_used_them() -> None:
    quotas = fleet(Limits(tokens_per_day=1000))
    quotas["g0"].admit(0.0, 600)
    quotas["g0"].settle(1.0, 600, 600)
    gossip(quotas, 1.0)
    del quotas["g0"]
    quotas["g9"] = TenantQuota(Limits(tokens_per_day=1000), replica="g9")
    gossip(quotas, 1000.0)

    assert [admitted(quota, 1000.0, 1, tokens=401) for quota in quotas.values()] == [0, 0]
    assert admitted(quotas["g9"], 1000.0, 1, tokens=400) == 1


def test_a_replica_that_just_started_knows_of_the_last_minute() -> None:
    quotas = fleet(Limits(requests_per_minute=60))
    admitted(quotas["g1"], 0.0, 20)
    gossip(quotas, 30.0)
    admitted(quotas["g1"], 70.0, 10)
    quotas["g9"] = TenantQuota(Limits(requests_per_minute=60), replica="g9")
    gossip(quotas, 71.0)

    assert quotas["g9"].headers(71.0)["x-ratelimit-remaining-requests"] == "50"


def test_a_replica_that_fell_silent_is_not_waited_for() -> None:
    quotas = fleet(Limits(requests_per_minute=60, max_concurrent=100))
    admitted(quotas["g1"], 0.0, 10)
    gossip(quotas, 0.0)
    quotas["g0"].share(1)

    assert admitted(quotas["g0"], 4.9, 100) == 25
    assert admitted(quotas["g0"], 5.1, 100) == 25
    assert quotas["g0"].headers(5.1)["x-ratelimit-remaining-requests"] == "0"


def test_what_a_silent_replica_runs_counts_for_a_minute_unless_it_is_expected_no_more() -> None:
    quotas = fleet(Limits(max_concurrent=6))
    for count in (3, 1):
        assert admitted(quotas["g1"], 0.0, count) == count
        gossip(quotas, 0.0)

    assert [admitted(quotas["g0"], now, 6) for now in (59.9, 60.0)] == [1, 2]
    quotas["g0"].share(1)
    assert admitted(quotas["g0"], 60.0, 6) == 3


def test_what_a_replica_runs_that_nobody_expects_counts_until_five_seconds_of_silence() -> None:
    quotas = fleet(Limits(max_concurrent=6))
    assert admitted(quotas["g1"], 0.0, 3) == 3
    gossip(quotas, 0.0)
    quotas["g0"].share(1)

    assert [admitted(quotas["g0"], now, 6) for now in (4.9, 5.1)] == [1, 5]


def test_an_older_message_that_comes_later_is_ignored() -> None:
    quota = TenantQuota(Limits(requests_per_minute=60))
    for sequence, requests in ((2, 20), (1, 10), (2, 20)):
        counted = Counted(requests=requests)
        quota.remote_use("g1", ReplicaUse(sequence=sequence, counted=counted, in_last_minute=counted), 1.0)

    assert quota.headers(1.0)["x-ratelimit-remaining-requests"] == "40"


def test_what_it_said_itself_and_hears_again_is_ignored() -> None:
    quota = TenantQuota(Limits(requests_per_minute=60), replica="g0")
    admitted(quota, 0.0, 10)
    quota.remote_use("g0", quota.local_use(0.1), 0.1)

    assert quota.headers(0.1)["x-ratelimit-remaining-requests"] == "50"
