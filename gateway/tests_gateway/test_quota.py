"""What a tenant may use of a minute, a day and at a time; what it is told; what survives a restart."""

from __future__ import annotations

import pytest
from modelfleet_gateway.quota import Admitted, DayUse, Limits, Refused, TenantQuota, duration_text

MIDNIGHT = 20_000 * 86_400.0


def outcomes(quota: TenantQuota, *times: float, tokens: int = 1) -> list[str]:
    """What is said to a request at each time."""
    answers = [quota.admit(now, tokens) for now in times]
    return [answer.reason if isinstance(answer, Refused) else "admitted" for answer in answers]


def refusal(quota: TenantQuota, now: float, tokens: int = 1) -> Refused:
    answer = quota.admit(now, tokens)
    assert isinstance(answer, Refused)
    return answer


def run_request(quota: TenantQuota, now: float, *, estimated: int, used: int) -> None:
    """A whole request that takes no time."""
    admitted = quota.admit(now, estimated)
    assert isinstance(admitted, Admitted)
    quota.settle(now, used, estimated, admitted_at=admitted.at)
    quota.released()


def test_without_limits_everything_is_admitted_and_no_header_is_sent() -> None:
    quota = TenantQuota(Limits())

    assert outcomes(quota, *range(1000), tokens=10**9) == ["admitted"] * 1000
    assert quota.headers(1000.0) == {}


def test_requests_of_any_minute_stay_within_the_limit() -> None:
    quota = TenantQuota(Limits(requests_per_minute=3))

    assert outcomes(quota, 0.0, 10.0, 20.0, 30.0) == ["admitted", "admitted", "admitted", "requests"]
    assert outcomes(quota, 59.9, 60.0, 60.1, 70.0) == ["requests", "admitted", "requests", "admitted"]


def test_a_refusal_says_the_limit_the_use_and_when_there_is_room() -> None:
    quota = TenantQuota(Limits(requests_per_minute=2, tokens_per_minute=1000))
    outcomes(quota, 0.0, 10.0, tokens=400)

    assert refusal(quota, 15.5) == Refused(
        reason="requests",
        message="at most 2 requests a minute for this tenant; used in the last minute: 2",
        retry_after_seconds=44.5,
        headers={
            "retry-after": "45",
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "54.5s",
            "x-ratelimit-limit-tokens": "1000",
            "x-ratelimit-remaining-tokens": "200",
            "x-ratelimit-reset-tokens": "54.5s",
        },
    )


def test_a_request_waits_until_enough_tokens_have_left_the_minute() -> None:
    quota = TenantQuota(Limits(tokens_per_minute=1000))
    for now, tokens in ((0.0, 500), (10.0, 300), (20.0, 200)):
        assert outcomes(quota, now, tokens=tokens) == ["admitted"]

    assert refusal(quota, 20.0, 500).retry_after_seconds == 40.0
    assert refusal(quota, 20.0, 501).retry_after_seconds == 50.0
    assert refusal(quota, 20.0, 501).reason == "tokens"


def test_one_request_beyond_the_whole_limit_is_told_so() -> None:
    quota = TenantQuota(Limits(tokens_per_minute=1000))

    refused = refusal(quota, 0.0, 1001)

    assert refused.message == "at most 1000 tokens a minute for this tenant; this request alone needs 1001"
    assert refused.retry_after_seconds == 60.0


def test_requests_at_a_time_are_limited_until_one_is_released() -> None:
    quota = TenantQuota(Limits(max_concurrent=2))
    assert outcomes(quota, 0.0, 0.0, 0.0) == ["admitted", "admitted", "concurrency"]
    assert refusal(quota, 5.0).message == "at most 2 requests of this tenant run at a time; now running: 2"
    assert refusal(quota, 5.0).headers == {"retry-after": "1"}

    quota.released()

    assert outcomes(quota, 5.0, 5.0) == ["admitted", "concurrency"]


def test_what_was_estimated_too_high_is_given_back_and_what_was_too_low_is_charged() -> None:
    quota = TenantQuota(Limits(tokens_per_minute=1000))

    run_request(quota, 0.0, estimated=900, used=100)
    assert quota.headers(1.0)["x-ratelimit-remaining-tokens"] == "900"
    run_request(quota, 1.0, estimated=100, used=950)

    assert quota.headers(1.0)["x-ratelimit-remaining-tokens"] == "0"
    assert outcomes(quota, 1.0, 59.0, 60.0, tokens=10) == ["tokens", "tokens", "admitted"]


def test_an_estimate_that_left_the_minute_is_not_given_back_from_what_others_used() -> None:
    quota = TenantQuota(Limits(tokens_per_minute=1000))
    assert outcomes(quota, 0.0, tokens=900) == ["admitted"]
    assert outcomes(quota, 61.0, tokens=800) == ["admitted"]

    quota.settle(62.0, 50, 900, admitted_at=0.0)

    assert quota.headers(62.0)["x-ratelimit-remaining-tokens"] == "200"


def test_tokens_of_the_day_are_limited_until_midnight_utc() -> None:
    quota = TenantQuota(Limits(tokens_per_day=1000), unix_offset_seconds=MIDNIGHT)
    run_request(quota, 100.0, estimated=10, used=800)

    refused = refusal(quota, 86_000.0, 201)

    assert (refused.reason, refused.retry_after_seconds) == ("daily_tokens", 400.0)
    assert refused.message == "at most 1000 tokens a day for this tenant; used: 800, this request needs 201"
    assert outcomes(quota, 86_000.0, 86_399.9, 86_400.0, tokens=200) == ["admitted", "daily_tokens", "admitted"]


def test_what_is_in_flight_counts_for_the_day_by_its_estimate() -> None:
    quota = TenantQuota(Limits(tokens_per_day=1000))
    assert outcomes(quota, 0.0, 0.0, tokens=600) == ["admitted", "daily_tokens"]

    quota.settle(5.0, 100, 600)

    assert outcomes(quota, 5.0, 5.0, tokens=600) == ["admitted", "daily_tokens"]


def test_a_restart_keeps_the_tokens_of_the_day_that_were_written_down() -> None:
    limits = Limits(tokens_per_day=1000)
    before = TenantQuota(limits, replica="gateway-1", unix_offset_seconds=MIDNIGHT)
    run_request(before, 100.0, estimated=10, used=700)
    saved = before.checkpoint()
    assert saved == DayUse(day=20_000, tokens={"gateway-1": 700})

    after = TenantQuota(limits, replica="gateway-2", unix_offset_seconds=MIDNIGHT + 200)
    after.restore(saved)
    run_request(after, 0.0, estimated=10, used=200)

    assert after.checkpoint() == DayUse(day=20_000, tokens={"gateway-1": 700, "gateway-2": 200})
    assert outcomes(after, 1.0, 1.0, tokens=100) == ["admitted", "daily_tokens"]


def test_what_was_written_down_yesterday_counts_no_more() -> None:
    quota = TenantQuota(Limits(tokens_per_day=1000), unix_offset_seconds=MIDNIGHT)
    quota.restore(DayUse(day=19_999, tokens={"gateway-1": 1000}))

    assert outcomes(quota, 0.0, tokens=1000) == ["admitted"]


def test_a_restored_day_is_merged_and_not_added() -> None:
    quota = TenantQuota(Limits())
    for tokens in ({"a": 10, "b": 5}, {"a": 7, "b": 9}):
        quota.restore(DayUse(day=3, tokens=tokens))

    assert quota.checkpoint() == DayUse(day=3, tokens={"a": 10, "b": 9})


def test_new_limits_apply_at_once_to_what_was_used_before() -> None:
    quota = TenantQuota(Limits())
    outcomes(quota, *([0.0] * 5))

    quota.limits = Limits(requests_per_minute=6)

    assert outcomes(quota, 1.0, 1.0) == ["admitted", "requests"]


def test_a_refused_request_uses_nothing() -> None:
    quota = TenantQuota(Limits(requests_per_minute=10, tokens_per_minute=100, max_concurrent=1))
    outcomes(quota, 0.0, 0.0, 0.0, tokens=60)

    assert quota.headers(0.0)["x-ratelimit-remaining-requests"] == "9"
    assert quota.headers(0.0)["x-ratelimit-remaining-tokens"] == "40"


def test_a_tenant_may_use_the_models_it_is_allowed_to() -> None:
    assert Limits().allows("llama.default")
    assert Limits(allowed_models=frozenset({"llama.default"})).allows("llama.default")
    assert not Limits(allowed_models=frozenset({"llama.default"})).allows("llama.other")
    assert not Limits(allowed_models=frozenset()).allows("llama.default")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0061, "7ms"),
        (0.012, "12ms"),
        (0.9999, "1s"),
        (1.0, "1s"),
        (8.64, "8.64s"),
        (59.9, "59.9s"),
        (60.0, "1m0s"),
        (90.5, "1m30.5s"),
        (360.0, "6m0s"),
        (3600.0, "1h0m0s"),
        (86_399.999, "23h59m59.999s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
