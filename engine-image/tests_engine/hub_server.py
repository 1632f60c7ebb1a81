"""A local server that speaks what of the Hugging Face Hub's protocol a download needs. Not a mock of the library.

Large files (`*.safetensors`) redirect to another host with `X-Linked-*` headers, as the Hub's do to its CDN; that host
serves byte ranges, and can break off once. `org/old` is the repository's former name, redirected as the Hub does.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

from aiohttp import web

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class HubServer:
    """One repository `org/name`, once `org/old`, with one commit, called main. Fields may be changed while it runs."""

    files: dict[str, bytes]
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    token: str | None = None
    is_gated: bool = False
    api_status: int | None = None
    # Bytes after which the next answer for a large file breaks off, once.
    break_after_bytes: int | None = None
    # "METHOD path" with the Range header where there is one, in order; the library's own telemetry left out.
    log: list[str] = field(default_factory=list)
    cdn_saw_token: bool = False
    # Where it listens; port 0 is any free one of the loopback, and then the two addresses follow from it.
    host: str = "127.0.0.1"
    port: int = 0
    url: str = ""
    cdn_url: str = ""
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens at `host`."""
        app = web.Application()
        app.router.add_get("/api/models/org/name/revision/{revision:.+}", self._revision)
        app.router.add_get("/api/models/org/name/tree/{revision}", self._tree)
        app.router.add_get("/org/name/resolve/{revision}/{file:.+}", self._resolve)
        app.router.add_get("/cdn/{digest}", self._cdn)
        app.router.add_get("/{start:(api/models/)?}org/old/{rest:.*}", self._renamed)
        app.router.add_get("/{rest:.*}", self._nothing)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        if self.url:
            return
        port = self._runner.addresses[0][1]
        # The same socket under two names: to a client these are two hosts.
        self.url, self.cdn_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    async def stop(self) -> None:
        """Closes it."""
        if self._runner is not None:
            await self._runner.cleanup()

    def downloads(self) -> list[str]:
        """The log's GETs of file contents."""
        return [line for line in self.log if line.startswith("GET /cdn/") or line.startswith("GET /org/")]

    def _note(self, request: web.Request) -> None:
        asked = request.headers.get("Range")
        self.log.append(f"{request.method} {request.path}" + (f" {asked}" if asked else ""))

    def _refusal(self, request: web.Request, *, revision: str) -> web.Response | None:
        if self.api_status is not None:
            return web.Response(status=self.api_status)
        is_known = self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}"
        if not is_known and "Authorization" in request.headers:
            return web.Response(status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        if not is_known:
            return web.Response(status=401, headers={"X-Error-Code": "RepoNotFound"})
        if self.is_gated:
            return web.Response(status=403, headers={"X-Error-Code": "GatedRepo"})
        if revision not in self.revisions:
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return None

    async def _revision(self, request: web.Request) -> web.Response:
        self._note(request)
        refusal = self._refusal(request, revision=request.match_info["revision"])
        if refusal is not None:
            return refusal
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        return web.json_response({"id": "org/name", "sha": COMMIT, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.Response:
        self._note(request)
        refusal = self._refusal(request, revision=request.match_info["revision"])
        if refusal is not None:
            return refusal
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            | ({"lfs": _lfs(content)} if name.endswith(".safetensors") else {})
            for name, content in self.files.items()
        ]
        return web.json_response(entries)

    async def _resolve(self, request: web.Request) -> web.Response:
        self._note(request)
        refusal = self._refusal(request, revision=request.match_info["revision"])
        if refusal is not None:
            return refusal
        content = self.files.get(request.match_info["file"])
        if content is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": COMMIT}
        if not request.match_info["file"].endswith(".safetensors"):
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return web.Response(body=content, headers={**headers, "ETag": etag})
        digest = hashlib.sha256(content).hexdigest()
        headers |= {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.cdn_url}/cdn/{digest}",
        }
        return web.Response(status=302, headers=headers)

    async def _cdn(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        self.cdn_saw_token |= "Authorization" in request.headers
        (content,) = [
            item for item in self.files.values() if hashlib.sha256(item).hexdigest() == request.match_info["digest"]
        ]
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(content) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        await response.prepare(request)
        if self.break_after_bytes is None:
            await response.write(content[start:])
            return response
        await response.write(content[start : start + self.break_after_bytes])
        self.break_after_bytes = None
        # The part must leave before the connection does.
        await asyncio.sleep(0.1)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _renamed(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.Response(status=307, headers={"Location": str(request.rel_url).replace("/old/", "/name/", 1)})

    async def _nothing(self, request: web.Request) -> web.Response:
        if request.path != "/api/agent-harnesses":
            self._note(request)
        return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})


def _lfs(content: bytes) -> dict[str, object]:
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
