"""However requests fall on the replicas and however late their gossip is: no limit is passed by more than 5 %."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from modelfleet_gateway.quota import Admitted, Limits, TenantQuota
from modelfleet_gateway.quota_sharing import ReplicaUse

REPLICAS = ("a", "b", "c")
LIMITS = Limits(requests_per_minute=60, tokens_per_minute=3000, tokens_per_day=20_000, max_concurrent=20)
_replicas = st.sampled_from(REPLICAS)


class Gateways(RuleBasedStateMachine):
    """Three replicas whose messages come late, in any order, twice, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.quotas = {name: TenantQuota(LIMITS, replica=name) for name in REPLICAS}
        for quota in self.quotas.values():
            quota.share(len(REPLICAS))
        self.now = 0.0
        self.messages: list[tuple[str, ReplicaUse]] = []
        self.running: list[tuple[str, float, int]] = []
        self.admitted: list[float] = []
        self.tokens: list[tuple[float, int]] = []

    @rule(name=_replicas, tokens=st.integers(1, 150), count=st.integers(1, 30))
    def burst(self, name: str, tokens: int, count: int) -> None:
        for _ in range(count):
            if isinstance(self.quotas[name].admit(self.now, tokens), Admitted):
                self.running.append((name, self.now, tokens))
                self.admitted.append(self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=st.floats(0, 1))
    def end(self, data: st.DataObject, share: float) -> None:
        name, at, estimated = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        used = int(share * estimated)
        self.quotas[name].settle(self.now, used, estimated, admitted_at=at)
        self.quotas[name].released()
        self.tokens.append((at, used))

    @rule(name=_replicas)
    def tell(self, name: str) -> None:
        self.messages.append((name, self.quotas[name].local_use(self.now)))

    @precondition(lambda self: self.messages)
    @rule(to=_replicas, data=st.data())
    def hear(self, to: str, data: st.DataObject) -> None:
        sender, use = self.messages[data.draw(st.integers(0, len(self.messages) - 1))]
        self.quotas[to].remote_use(sender, use, self.now)

    @rule()
    def everybody_hears_everybody(self) -> None:
        # Message by message it is rare that all is confirmed, and only then is there more to give away at once.
        for _ in range(2):
            uses = [(name, quota.local_use(self.now)) for name, quota in self.quotas.items()]
            for quota in self.quotas.values():
                for sender, use in uses:
                    quota.remote_use(sender, use, self.now)

    @rule(seconds=st.sampled_from([0.03, 0.5, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_limit_is_passed_by_more_than_a_twentieth(self) -> None:
        within = [at for at in self.admitted if at > self.now - 60]
        assert len(within) <= 63
        of_running = sum(estimated for _, at, estimated in self.running if at > self.now - 60)
        assert of_running + sum(used for at, used in self.tokens if at > self.now - 60) <= 3150
        # Who was silent for a minute is forgotten, with what it has had running for longer than that.
        assert len([at for _, at, _ in self.running if at > self.now - 60]) <= 21

    @invariant()
    def what_is_left_is_never_negative_nor_more_than_the_limit(self) -> None:
        for quota in self.quotas.values():
            headers = quota.headers(self.now)
            assert 0 <= int(headers["x-ratelimit-remaining-requests"]) <= 60
            assert 0 <= int(headers["x-ratelimit-remaining-tokens"]) <= 3000


TestGateways = Gateways.TestCase
TestGateways.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
