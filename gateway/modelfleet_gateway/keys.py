"""Who asks: from a Bearer key to a tenant. Keys are known by their SHA-256 alone and never logged."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping

from modelfleet_gateway.errors import GatewayError
from modelfleet_gateway.fleet_source import Snapshot, TenantSpec
from modelfleet_gateway.quota import DayUse, TenantQuota

# A key's digest is looked up by its first bytes; they tell nothing of a key, whoever measures the time it takes.
_PREFIX_BYTES = 8
_MAX_KEY_CHARACTERS = 512


class Tenant:
    """One tenant at run time: what it may do, and what it has used."""

    def __init__(self, spec: TenantSpec) -> None:
        self.spec = spec
        self.quota = TenantQuota(spec.limits, unix_offset_seconds=time.time() - time.monotonic())

    @property
    def name(self) -> str:
        """As logs and metrics have it."""
        return self.spec.name

    def may_use(self, canonical: str) -> bool:
        """Whether the model with this canonical id is allowed."""
        return self.spec.limits.allows(canonical)

    @property
    def sees_all(self) -> bool:
        """Whether no model is hidden from it."""
        return self.spec.limits.allowed_models is None

    def priority(self, requested: int | None) -> int:
        """What a request gets: as asked, but never before the tenant's own (lower is sooner)."""
        own = self.spec.limits.priority
        return own if requested is None else max(own, requested)


class Tenants:
    """All tenants, and who may ask without a key."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tenant] = {}
        self._by_prefix: dict[bytes, list[tuple[bytes, Tenant]]] = {}
        self._anonymous: Tenant | None = None

    def update(self, snapshot: Snapshot) -> None:
        """A new snapshot: keys and limits change at once; what a tenant has used today stays used."""
        specs = [*snapshot.tenants, *([snapshot.anonymous] if snapshot.anonymous else [])]
        self._by_name = {spec.name: self._renewed(spec) for spec in specs}
        self._anonymous = self._by_name[snapshot.anonymous.name] if snapshot.anonymous else None
        self._by_prefix = {}
        for spec in snapshot.tenants:
            for digest in spec.key_digests:
                entry = (digest, self._by_name[spec.name])
                self._by_prefix.setdefault(digest[:_PREFIX_BYTES], []).append(entry)

    @property
    def weights(self) -> dict[str, int]:
        """Each tenant's share of a model that has too little room."""
        return {name: tenant.spec.limits.weight for name, tenant in self._by_name.items()}

    def checkpoint(self) -> dict[str, DayUse]:
        """What each tenant has used today."""
        return {name: tenant.quota.checkpoint() for name, tenant in self._by_name.items()}

    def restore(self, saved: Mapping[str, DayUse]) -> None:
        """Takes in what was written down; tenants that are gone are forgotten."""
        for name, use in saved.items():
            if name in self._by_name:
                self._by_name[name].quota.restore(use)

    def identify(self, authorization: str | None) -> Tenant:
        """The tenant of an Authorization header.

        Raises:
            GatewayError: 401, no key where one is needed, or an unknown one.
        """
        if not authorization:
            if self._anonymous is None:
                raise _unauthorized("An API key is needed: send it as `Authorization: Bearer KEY`.")
            return self._anonymous
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(key) <= _MAX_KEY_CHARACTERS:
            raise _unauthorized("The Authorization header must be `Bearer KEY`.")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        for known, tenant in self._by_prefix.get(digest[:_PREFIX_BYTES], ()):
            if hmac.compare_digest(known, digest):
                return tenant
        # OpenAI's clients always send some key: where everybody may ask, one that nobody has is no mistake.
        if self._anonymous is not None and not self._by_prefix:
            return self._anonymous
        raise _unauthorized("The API key is not known here.")

    def _renewed(self, spec: TenantSpec) -> Tenant:
        known = self._by_name.get(spec.name)
        if known is None:
            return Tenant(spec)
        known.spec = spec
        known.quota.limits = spec.limits
        return known


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
