"""What clients are told when there is no place for their request: whose fault, and when to ask again. PURE."""

from __future__ import annotations

from modelfleet_gateway.errors import GatewayError
from modelfleet_gateway.fleet import Model
from modelfleet_gateway.pool import ModelPool

# A gateway's restart: another replica answers at once.
GATEWAY_RESTART_SECONDS = 1.0
SUSPENDED_SECONDS = 60.0


def unknown_model() -> GatewayError:
    """It was there a moment ago."""
    return GatewayError(404, "The model does not exist any more.", "model_not_found", param="model")


def suspended(model: Model) -> GatewayError:
    """By the user's will: nobody knows for how long."""
    message = f"The model {model.id.canonical} is suspended."
    return GatewayError(503, message, "model_suspended", retry_after_seconds=SUSPENDED_SECONDS)


def gateway_ending() -> GatewayError:
    """Not begun, hence safe to ask again."""
    message = "This gateway is shutting down; ask again."
    return GatewayError(503, message, "gateway_draining", retry_after_seconds=GATEWAY_RESTART_SECONDS)


def queue_full(pool: ModelPool, now: float, *, has_routable: bool) -> GatewayError:
    """The model's limit of waiting requests: too many (429) where engines run, not yet (503) where none does."""
    retry_after = pool.retry_after_seconds(now, has_routable=has_routable)
    limit = pool.model.hold.max_requests
    waiting = f"{limit} requests wait for the model {pool.model.id.canonical} already, which is the most that may"
    if has_routable:
        return GatewayError(429, f"{waiting}.", "queue_full", retry_after_seconds=retry_after)
    return GatewayError(503, f"{waiting} while it starts.", "model_starting", retry_after_seconds=retry_after)


def held_too_long(pool: ModelPool, now: float, *, has_routable: bool) -> GatewayError:
    """The model's limit of waiting time."""
    retry_after = pool.retry_after_seconds(now, has_routable=has_routable)
    seconds = pool.model.hold.timeout_seconds
    reason = "no engine had room" if has_routable else "no engine was ready"
    message = f"The request waited {seconds:g} s for the model {pool.model.id.canonical}, and {reason}."
    code = "queue_timeout" if has_routable else "model_starting"
    return GatewayError(503, message, code, retry_after_seconds=retry_after)


def deadline_over() -> GatewayError:
    """The client's own limit."""
    return GatewayError(504, "The request's time was over before it was answered.", "request_timeout")
