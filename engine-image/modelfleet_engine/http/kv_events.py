"""`GET /kv-events`: which text-block hashes have their KV here, as server-sent events for gateways.

A snapshot first, then every change; see `modelfleet_api.protocol.KvEvent`. A reader that is too slow gets a new
snapshot. The stream ends when the engine drains: whoever reads it learns at once that requests belong elsewhere.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from modelfleet_engine.http.errors import draining_response, model_loading_error, request_error_response
from modelfleet_engine.http.keys import SERVING
from modelfleet_engine.kv_event_hub import KvSubscription

# Proxies drop connections that are silent for a minute; a dead peer shows in the failed write.
HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b": heartbeat\n\n"


async def kv_events(request: web.Request) -> web.StreamResponse:
    """Streams events until the client goes away or the engine drains. 503 before the model is loaded and after."""
    serving = request.app[SERVING]
    if serving.model is None:
        return request_error_response(model_loading_error(serving.phase))
    if serving.drain.is_draining:
        return draining_response()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    # The stream ends because this engine goes away: nothing should be asked on this connection after it.
    response.force_close()
    with serving.model.bridge.kv_events.subscribe() as subscription:
        await response.prepare(request)
        await _write_events(response, subscription)
    await response.write_eof()
    return response


async def _write_events(response: web.StreamResponse, subscription: KvSubscription) -> None:
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                event = await subscription.next_event()
        except TimeoutError:
            await response.write(_HEARTBEAT)
            continue
        if event is None:
            return
        await response.write(b"data: " + event.model_dump_json(by_alias=True).encode() + b"\n\n")
