"""From a call to its answer: wait for a place, let an engine try, and another while nothing was passed on.

Must not know how a place is chosen (`dispatcher`), nor what an engine's answer means (`attempt`).
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from modelfleet_gateway.attempt import Loss, Retry, failed, pass_on
from modelfleet_gateway.call import Call
from modelfleet_gateway.dispatcher import Dispatcher
from modelfleet_gateway.exchange import Exchange
from modelfleet_gateway.internal_key import InternalKey
from modelfleet_gateway.placement import Grant
from modelfleet_gateway.retry_budget import RetryBudget
from modelfleet_gateway.upstream import Upstream, UpstreamError

MAX_RETRIES = 2
# Engines that are not there at all, or are leaving, cost nothing: but a fleet of them must not be tried for ever.
MAX_FREE_RETRIES = 16


class Proxy:
    """Serves calls."""

    def __init__(
        self, *, dispatcher: Dispatcher, upstream: Upstream, key: InternalKey, heartbeat_seconds: float
    ) -> None:
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._key = key
        self._heartbeat_seconds = heartbeat_seconds
        self._budget = RetryBudget()

    async def serve(self, call: Call, exchange: Exchange) -> web.StreamResponse:
        """The call's answer.

        Raises:
            GatewayError: there is none; the caller tells the client.
            ConnectionResetError: the client is gone.
        """
        self._budget.request(time.monotonic())
        counted, free = 0, 0
        while True:
            grant = await self._place(call, exchange)
            outcome = await self._attempt(call, exchange, grant)
            if not isinstance(outcome, Retry):
                return outcome
            if outcome.loss is Loss.NOT_BEGUN and free < MAX_FREE_RETRIES:
                free += 1
            elif counted < MAX_RETRIES and self._may_retry(call, grant, outcome.loss):
                counted += 1
            elif outcome.answered is not None:
                return await exchange.answer(*outcome.answered)
            else:
                raise outcome.error
            call.job.avoid |= {grant.endpoint.uid}
            call.record.retries += 1
            call.pool.statistics.retries += 1

    def _may_retry(self, call: Call, grant: Grant, loss: Loss) -> bool:
        """The first time that an engine takes a request with it there is always another try; else by the budget."""
        if loss is Loss.LOST and not call.job.avoid:
            return True
        now = time.monotonic()
        tried = call.job.avoid | {grant.endpoint.uid}
        has_other = any(state.endpoint.uid not in tried for state in call.pool.routable(now))
        return has_other and self._budget.try_spend(now)

    async def _place(self, call: Call, exchange: Exchange) -> Grant:
        """Waits for a place; clients of streams get a sign of life now and then."""
        place = self._dispatcher.submit(call.job)
        if place.done():
            return place.result()
        started = time.monotonic()
        try:
            while not place.done():
                await asyncio.wait((place,), timeout=self._heartbeat_seconds if call.is_stream else None)
                if not place.done():
                    await exchange.heartbeat()
        except BaseException:
            self._dispatcher.withdraw(call.job, place)
            raise
        call.record.held_seconds = (call.record.held_seconds or 0.0) + time.monotonic() - started
        return place.result()

    async def _attempt(self, call: Call, exchange: Exchange, grant: Grant) -> web.StreamResponse | Retry:
        """One engine's try, from its place to the end of its answer."""
        call.record.endpoint = grant.endpoint.uid
        try:
            answer = await self._upstream.post(
                grant.endpoint.base_url,
                call.path,
                body=call.body_for(grant.endpoint.uid),
                headers=call.headers(key=self._key.shown),
                deadline=call.job.deadline,
            )
            async with answer:
                return await pass_on(call, exchange, grant, answer)
        except UpstreamError as error:
            return failed(call, grant, error)
        finally:
            self._dispatcher.release(grant, cost_tokens=float(call.used_tokens))
