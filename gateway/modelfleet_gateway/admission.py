"""From a request's head and body to an admitted call: who asks, for what, and whether they may now.

Every refusal happens here, before anything waits or is sent. Whatever the quota counted is given back by `settle`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping

from modelfleet_api import protocol

from modelfleet_gateway import refusals
from modelfleet_gateway.access_log import AccessRecord
from modelfleet_gateway.call import Call, sent_headers
from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.errors import GatewayError
from modelfleet_gateway.fleet import ModelId
from modelfleet_gateway.keys import Tenant, Tenants
from modelfleet_gateway.placement import Job
from modelfleet_gateway.prefix_text import prompt_text, text_blocks
from modelfleet_gateway.quota import Refused
from modelfleet_gateway.request_body import RequestBody, parse_request_body, rewritten
from modelfleet_gateway.resolve import AmbiguousHostError, UnknownModelError, resolve

# A day; what needs longer is a batch job.
MAX_TIMEOUT_SECONDS = 86_400.0
HEADER_TRACE = "x-modelfleet-trace"
GENERATION_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
# Also sent to an engine by the model they name; they generate nothing.
PASSED_PATHS = GENERATION_PATHS | {"/tokenize", "/detokenize"}


class Admission:
    """Judges requests."""

    def __init__(self, *, dispatcher: Dispatcher, tenants: Tenants, total_seconds: float, draws: random.Random) -> None:
        self._dispatcher = dispatcher
        self._tenants = tenants
        self._total_seconds = total_seconds
        self._draws = draws

    def identify(self, headers: Mapping[str, str]) -> Tenant:
        """Who asks. Raises GatewayError 401."""
        return self._tenants.identify(headers.get("Authorization"))

    def admit(self, raw: bytes, headers: Mapping[str, str], *, tenant: Tenant, record: AccessRecord) -> Call:
        """The call, counted in the tenant's quota.

        Raises:
            GatewayError: 400, 403, 404 or 429.
        """
        deadline = self._deadline(headers, arrived=record.arrived_seconds)
        body = parse_request_body(raw)
        record.is_stream = body.is_stream
        model_id = self._resolve(body, headers, tenant=tenant)
        record.model = model_id.canonical
        if not tenant.may_use(model_id.canonical):
            raise GatewayError(403, f"This key may not use the model {body.model}.", "model_not_allowed", param="model")
        pool = self._dispatcher.pools.get(model_id)
        if pool is None:
            raise refusals.unknown_model()
        call = self._call(body, headers, tenant=tenant, record=record, model_id=model_id, deadline=deadline)
        self._count(call)
        pool.statistics.arrivals += 1
        pool.statistics.prompt_tokens += call.job.prompt_tokens
        return call

    @staticmethod
    def settle(call: Call) -> None:
        """The call has ended, however: the quota learns what it really took."""
        quota = call.tenant.quota
        quota.settle(time.monotonic(), call.used_tokens, call.estimated_tokens, admitted_at=call.record.arrived_seconds)
        quota.released()

    def _call(
        self,
        body: RequestBody,
        headers: Mapping[str, str],
        *,
        tenant: Tenant,
        record: AccessRecord,
        model_id: ModelId,
        deadline: float | None,
    ) -> Call:
        pool = self._dispatcher.pools[model_id]
        salt = tenant.spec.limits.salt
        text = prompt_text(body.fields)
        blocks = text_blocks(text, salt=salt)
        prompt_tokens = pool.book.tokens_of(model_id, characters=len(text))
        generates = record.path in GENERATION_PATHS
        output_tokens = float(body.output_tokens * body.choices) if generates else 0.0
        priority = tenant.priority(body.priority)
        session_header = pool.model.session_header
        # Engines know their served name; a priority the tenant may not have is one they must not see.
        sent_model = None if body.model is None else pool.model.served_name
        sent_priority = None if body.priority is None else priority
        asks_usage = generates and body.is_stream and not body.wants_usage and pool.has_foreign
        return Call(
            path=record.path,
            is_stream=body.is_stream,
            sent_body=rewritten(body, model=sent_model, priority=sent_priority),
            foreign_body=rewritten(body, model=sent_model, priority=sent_priority, includes_usage=True)
            if asks_usage
            else None,
            sent_headers=sent_headers(
                headers,
                request_id=record.request_id,
                salt=salt,
                blocks=blocks,
                is_stream=body.is_stream and generates,
            ),
            pool=pool,
            tenant=tenant,
            job=Job(
                model=model_id,
                tenant=tenant.name,
                priority=priority,
                arrived=record.arrived_seconds,
                deadline=record.arrived_seconds + self._total_seconds if deadline is None else deadline,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                blocks=blocks,
                session_key=None if session_header is None else headers.get(session_header),
            ),
            record=record,
            prompt_characters=len(text),
            estimated_tokens=math.ceil(prompt_tokens + output_tokens),
            has_client_deadline=deadline is not None,
            wants_trace=headers.get(HEADER_TRACE) == "1",
        )

    def _count(self, call: Call) -> None:
        """Takes the request's share of the tenant's quota."""
        verdict = call.tenant.quota.admit(call.record.arrived_seconds, call.estimated_tokens)
        if isinstance(verdict, Refused):
            headers = {name: value for name, value in verdict.headers.items() if name != "retry-after"}
            message = f"Over the quota: {verdict.message}."
            raise GatewayError(
                429,
                message,
                "insufficient_quota" if verdict.reason == "daily_tokens" else "rate_limit_exceeded",
                retry_after_seconds=verdict.retry_after_seconds,
                headers=headers,
            )

    def _resolve(self, body: RequestBody, headers: Mapping[str, str], *, tenant: Tenant) -> ModelId:
        try:
            return resolve(
                self._dispatcher.fleet,
                requested=body.model,
                host=headers.get("Host"),
                headers=headers,
                draw=self._draws.random(),
            ).model
        except UnknownModelError as error:
            # Names of models that somebody may not use are nothing to help them with.
            message = str(error) if tenant.sees_all else f"The model {body.model!r} does not exist"
            if body.model is None:
                raise GatewayError(400, f"{message}.", "model_missing", param="model") from None
            raise GatewayError(404, f"{message}.", "model_not_found", param="model") from None
        except AmbiguousHostError as error:
            message = str(error) if tenant.sees_all else "Several models have this host: use a canonical name"
            raise GatewayError(404, f"{message}.", "model_not_found", param="model") from None

    def _deadline(self, headers: Mapping[str, str], *, arrived: float) -> float | None:
        """The client's own limit, where it gave one."""
        given = headers.get(protocol.HEADER_REQUEST_TIMEOUT)
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            rule = f"must be a number of seconds above 0, at most {MAX_TIMEOUT_SECONDS:g}"
            header = protocol.HEADER_REQUEST_TIMEOUT
            raise GatewayError(400, f"{header}: {rule}.", "invalid_header", param=header)
        return arrived + min(seconds, self._total_seconds)
