"""A few synchronous requests to the real API server, for tests about what it accepts."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2e.cluster.apiserver import ApiServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status code and decoded body."""

    code: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The API server's words, of a Status body."""
        return str(self.body.get("message", ""))


def request(
    server: ApiServer, method: str, path: str, *, body: Mapping[str, Any] | None = None, media: str = "application/json"
) -> Answer:
    """One request as administrator; HTTP errors are answers too."""
    outgoing = urllib.request.Request(
        server.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.token}", "Content-Type": media, "Accept": "application/json"},
    )
    context = ssl.create_default_context(cafile=str(server.ca_path))
    try:
        with urllib.request.urlopen(outgoing, context=context, timeout=10) as response:
            return Answer(code=response.status, body=json.loads(response.read()))
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
            # A path that is not served yet answers in plain text.
            is_json = error.headers.get_content_type() == "application/json"
            return Answer(code=error.code, body=json.loads(text) if is_json else {"message": text.decode()})
