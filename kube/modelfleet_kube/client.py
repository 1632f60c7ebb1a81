"""The asynchronous Kubernetes client of every part: get, list, watch, apply, patch, create, update, delete.

A thin map from verbs to `Transport`. Must not retry, cache or know the product. Objects are plain dicts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from modelfleet_kube.connection import Connection
from modelfleet_kube.errors import ProtocolError, UnavailableError, error_from_status
from modelfleet_kube.resources import Manifest, ObjectRef, ResourceKind, Selection, key_of
from modelfleet_kube.transport import CONNECT_TIMEOUT_SECONDS, Exchange, RequestRecord, Transport

LIST_PAGE_ITEMS = 500
# Bookmarks come about once a minute: a watch this long without a byte is a dead connection.
WATCH_SILENCE_SECONDS = 150.0

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectList:
    """A consistent snapshot: the items (with apiVersion and kind filled in) and the version to watch from."""

    items: list[dict[str, Any]]
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """ADDED, MODIFIED, DELETED or BOOKMARK, and the object."""

    type: str
    object: dict[str, Any]


class Client:
    """One API server, one identity. Open it inside a running loop, or use it as an async context manager.

    Every method raises a KubeError (see `errors`) and nothing else for what the server or the network does.
    """

    def __init__(self, connection: Connection, *, on_request: Callable[[RequestRecord], None] | None = None) -> None:
        self._transport = Transport(connection, on_request=on_request)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        await self._transport.close()

    async def request(self, exchange: Exchange) -> dict[str, Any]:
        """One exchange of the caller's own making."""
        return await self._transport.send(exchange)

    async def get(self, ref: ObjectRef) -> dict[str, Any]:
        """The object now. Raises NotFoundError."""
        return await self._send(ref, method="GET", verb="get")

    async def list(self, selection: Selection) -> ObjectList:
        """Everything selected, in pages of one snapshot."""
        kind = selection.kind
        query = {**selection.query(), "limit": str(LIST_PAGE_ITEMS)}
        items: list[dict[str, Any]] = []
        while True:
            page = await self._transport.send(
                Exchange(
                    method="GET",
                    path=kind.path(namespace=selection.namespace),
                    verb="list",
                    resource=kind.plural,
                    query=query,
                )
            )
            for item in page.get("items") or []:
                # List items come without both; comparing such an item with a rendered one differs for ever.
                items.append({"apiVersion": kind.api_version, "kind": kind.kind, **item})
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return ObjectList(items=items, resource_version=metadata["resourceVersion"])
            query["continue"] = metadata["continue"]

    async def watch(
        self, selection: Selection, *, resource_version: str, timeout_seconds: int
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after `resource_version`, until the server ends the stream (at the latest after the timeout).

        Raises GoneError when the version is too old, at the start or in the middle.
        """
        query = {
            **selection.query(),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        path = selection.kind.path(namespace=selection.namespace)
        exchange = Exchange(method="GET", path=path, verb="watch", resource=selection.kind.plural, query=query)
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=WATCH_SILENCE_SECONDS)
        async with self._transport.open(exchange, timeout=timeout) as response:
            async for line in _lines(response.content):
                yield _watch_event(line)

    async def apply(
        self, ref: ObjectRef, manifest: Manifest, *, field_manager: str, force: bool, subresource: str = ""
    ) -> dict[str, Any]:
        """Server-side apply: creates or updates. Raises ConflictError when others own a field and `force` is off."""
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._patch(ref, manifest, content_type=APPLY_PATCH, query=query, subresource=subresource)

    async def merge_patch(self, ref: ObjectRef, patch: Manifest, *, subresource: str = "") -> dict[str, Any]:
        """JSON merge patch: null removes, lists are replaced. With `metadata.uid` or resourceVersion in it: 409."""
        return await self._patch(ref, patch, content_type=MERGE_PATCH, query={}, subresource=subresource)

    async def strategic_patch(self, ref: ObjectRef, patch: Manifest, *, subresource: str = "") -> dict[str, Any]:
        """Strategic merge patch: lists of built-in kinds merge by their key (a pod's conditions by type)."""
        return await self._patch(ref, patch, content_type=STRATEGIC_MERGE_PATCH, query={}, subresource=subresource)

    async def create(self, kind: ResourceKind, manifest: Manifest) -> dict[str, Any]:
        """Creates it in the namespace it names. Raises ConflictError (`AlreadyExists`)."""
        namespace = manifest["metadata"].get("namespace", "")
        exchange = Exchange(
            method="POST",
            path=kind.path(namespace=namespace),
            verb="create",
            resource=kind.plural,
            body=manifest,
        )
        return await self._transport.send(exchange)

    async def update(self, kind: ResourceKind, manifest: Manifest) -> dict[str, Any]:
        """Replaces it; with `metadata.resourceVersion`, only if nobody else did: else ConflictError."""
        key = key_of(manifest)
        ref = ObjectRef(kind=kind, name=key.name, namespace=key.namespace)
        return await self._send(ref, method="PUT", verb="update", body=manifest)

    async def delete(
        self, ref: ObjectRef, *, uid: str | None = None, propagation: str = "Background"
    ) -> dict[str, Any] | None:
        """Deletes it; with `uid`, only that incarnation: else ConflictError. Raises NotFoundError.

        Returns the object where it is still there and only marked, which a finalizer does; None where it is gone.
        """
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        answer = await self._send(ref, method="DELETE", verb="delete", body=options)
        return answer if "deletionTimestamp" in (answer.get("metadata") or {}) else None

    async def _patch(
        self, ref: ObjectRef, body: Manifest, *, content_type: str, query: Mapping[str, str], subresource: str
    ) -> dict[str, Any]:
        exchange = Exchange(
            method="PATCH",
            path=f"{ref.path}/{subresource}" if subresource else ref.path,
            verb="apply" if content_type == APPLY_PATCH else "patch",
            resource=ref.kind.plural,
            subresource=subresource,
            query=query,
            body=body,
            content_type=content_type,
        )
        return await self._transport.send(exchange)

    async def _send(self, ref: ObjectRef, *, method: str, verb: str, body: Any = None) -> dict[str, Any]:
        exchange = Exchange(method=method, path=ref.path, verb=verb, resource=ref.kind.plural, body=body)
        return await self._transport.send(exchange)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length (aiohttp's own readline refuses those above its buffer: large objects)."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
    if rest.strip():
        raise UnavailableError("the watch ended in the middle of a line", reason="ConnectionError")


def _watch_event(line: bytes) -> WatchEvent:
    try:
        decoded = orjson.loads(line)
        event = WatchEvent(type=decoded["type"], object=decoded["object"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ProtocolError(f"not a watch event: {line[:100]!r}") from error
    if event.type == "ERROR":
        raise error_from_status(event.object, code=int(event.object.get("code") or 500))
    return event
