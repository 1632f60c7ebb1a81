"""The engine's OpenAPI document, `GET /openapi.json`: from the models that check bodies and describe answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from modelfleet_api.protocol import (
    HEADER_KEY,
    HEADER_PREFIX,
    HEADER_REQUEST_ID,
    HEADER_REQUEST_TIMEOUT,
    HEADER_SALT,
    HEADER_USAGE,
    PROTOCOL_VERSION,
    Load,
)
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from modelfleet_engine.http import answer_schema as answers
from modelfleet_engine.http.headers import MAX_TIMEOUT_SECONDS, PREFIX_HASHES_PATTERN, SALT_PATTERN
from modelfleet_engine.http.keys import SERVING
from modelfleet_engine.http.schema import ChatCompletionBody, CompletionBody
from modelfleet_engine.http.tokenize import DetokenizeBody, TokenizeBody
from modelfleet_engine.http.validate import (
    HARMLESS_FIELDS,
    NEUTRAL_MESSAGE_VALUES,
    NEUTRAL_STREAM_VALUES,
    NEUTRAL_VALUES,
)
from modelfleet_engine.serving import Serving

Schema = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"
_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"

_REASONS = {
    400: "The request is wrong; `param` names the field.",
    401: f"The engine answers its gateways only: `{HEADER_KEY}` is missing or wrong.",
    404: "There is no such model here.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The queue is full; `Retry-After` says when to come back.",
    500: "A bug of ours, or the engine failed.",
    503: "Not ready: loading, draining or unhealthy.",
    504: "The request's deadline passed.",
}
# With `stream: true`.
_CHUNK_EVENT: Schema = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "The JSON of one chunk, as OpenAI's; at last [DONE]."}},
    "required": ["data"],
}
_GENERATION = (400, 401, 404, 408, 413, 429, 500, 503, 504)
_GATED = (401, 500, 503)


# The objects of requests whose nulls `validate` drops.
_NULLABLE = ("ChatCompletionBody", "CompletionBody", "TokenizeBody", "DetokenizeBody", "ChatMessage", "StreamOptions")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """One method of one path. `answer` is a model, or None for text that is not JSON."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None
    answer_type: str = _JSON
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    is_generation: bool = False
    # Statuses that carry the answer's own shape instead of an error's.
    also: tuple[int, ...] = field(default=())


_OPERATIONS = (
    _Operation(method="get", path="/health", summary="Liveness", answer=answers.Health, also=(503,)),
    _Operation(method="get", path="/ready", summary="Readiness", answer=answers.Readiness, also=(503,)),
    _Operation(method="get", path="/metrics", summary="Prometheus metrics", answer=None, answer_type=_TEXT),
    _Operation(method="get", path="/load", summary="The fleet's load report", answer=Load, errors=(401,)),
    _Operation(
        method="get",
        path="/kv-events",
        summary="Which text blocks have their KV here, as it changes",
        answer=None,
        answer_type=_EVENTS,
        errors=(401, 503),
    ),
    _Operation(method="get", path="/openapi.json", summary="This document", answer=None, errors=_GATED),
    _Operation(method="get", path="/v1/models", summary="The model", answer=answers.ModelList, errors=_GATED),
    _Operation(
        method="get",
        path="/v1/models/{name}",
        summary="The model by name",
        answer=answers.ModelCard,
        errors=(404, *_GATED),
    ),
    _Operation(
        method="post",
        path="/v1/chat/completions",
        summary="Answer a conversation",
        answer=answers.ChatCompletion,
        body=ChatCompletionBody,
        errors=_GENERATION,
        is_generation=True,
    ),
    _Operation(
        method="post",
        path="/v1/completions",
        summary="Continue a text",
        answer=answers.Completion,
        body=CompletionBody,
        errors=_GENERATION,
        is_generation=True,
    ),
    _Operation(
        method="post",
        path="/tokenize",
        summary="A text's or a conversation's tokens",
        answer=answers.Tokenized,
        body=TokenizeBody,
        errors=(400, 401, 404, 408, 413, 429, 500, 503),
    ),
    _Operation(
        method="post",
        path="/detokenize",
        summary="The text of tokens",
        answer=answers.Detokenized,
        body=DetokenizeBody,
        errors=(400, 401, 404, 408, 413, 429, 500, 503),
    ),
)


async def openapi(request: web.Request) -> web.Response:
    """`GET /openapi.json`, also while the model is loading."""
    return web.Response(body=orjson.dumps(document(request.app[SERVING])), content_type=_JSON)


def document(serving: Serving) -> Schema:
    """The whole document; `model` is one of the names this engine answers to."""
    used: list[type[BaseModel] | None] = [answers.ErrorAnswer]
    for operation in _OPERATIONS:
        used += [operation.body, operation.answer]
    models = {model.__name__: model for model in used if model is not None}
    _, definitions = models_json_schema(
        [(models[name], "validation") for name in sorted(models)], ref_template=_REFERENCE
    )
    schemas: Schema = definitions["$defs"]
    for body in (ChatCompletionBody, CompletionBody, TokenizeBody, DetokenizeBody):
        schemas[body.__name__]["properties"]["model"] = {"type": "string", "enum": list(serving.model_names)}
    for body in (ChatCompletionBody, CompletionBody):
        _admit(schemas[body.__name__], NEUTRAL_VALUES)
        _admit(schemas[body.__name__], dict.fromkeys(HARMLESS_FIELDS))
    _admit(schemas["ChatMessage"], NEUTRAL_MESSAGE_VALUES)
    _admit(schemas["StreamOptions"], NEUTRAL_STREAM_VALUES)
    for name in _NULLABLE:
        _admit_null(schemas[name])
    paths: Schema = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, serving)
    return {
        "openapi": "3.1.0",
        "info": {"title": "modelfleet engine", "version": str(PROTOCOL_VERSION)},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _admit(schema: Schema, fields: Mapping[str, tuple[object, ...] | None]) -> None:
    """Adds fields that are accepted without effect: with these values, or with any."""
    for name, values in fields.items():
        anything = {"description": "Accepted; without effect on the answer."}
        schema["properties"].setdefault(name, anything if values is None else {"enum": [*values, None]})


def _admit_null(schema: Schema) -> None:
    """null equals absence, for every field that may be absent, known or not."""
    schema["additionalProperties"] = {"type": "null"}
    for name, field_schema in schema["properties"].items():
        if name not in schema.get("required", ()) and {"type": "null"} not in field_schema.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [field_schema, {"type": "null"}]}


def _operation(operation: _Operation, serving: Serving) -> Schema:
    described: Schema = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_')}",
        "parameters": _parameters(operation, serving),
        "responses": _responses(operation),
    }
    if operation.body is not None:
        reference = {"$ref": _REFERENCE.format(model=operation.body.__name__)}
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": reference}}}
    return described


def _responses(operation: _Operation) -> Schema:
    schema: Schema = (
        {"$ref": _REFERENCE.format(model=operation.answer.__name__)}
        if operation.answer is not None
        else {"type": "object" if operation.answer_type == _JSON else "string"}
    )
    content: Schema = {operation.answer_type: {"schema": schema}}
    if operation.is_generation:
        content[_EVENTS] = {"schema": _CHUNK_EVENT}
    error = {_JSON: {"schema": {"$ref": _REFERENCE.format(model="ErrorAnswer")}}}
    responses: Schema = {"200": {"description": "The answer.", "content": content}}
    responses |= {str(status): {"description": _REASONS[status], "content": error} for status in operation.errors}
    return responses | {str(status): {"description": _REASONS[status], "content": content} for status in operation.also}


def _parameters(operation: _Operation, serving: Serving) -> list[Schema]:
    parameters: list[Schema] = []
    if "{name}" in operation.path:
        name = {"type": "string", "enum": list(serving.model_names)}
        parameters.append({"name": "name", "in": "path", "required": True, "schema": name})
    if operation.is_generation:
        timeout = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_SECONDS}
        parameters += [
            _header(HEADER_REQUEST_TIMEOUT, timeout, "Seconds that are left for the whole request."),
            _header(HEADER_SALT, {"type": "string", "pattern": SALT_PATTERN}, "Whose prefix cache this is."),
            _header(
                HEADER_PREFIX,
                {"type": "string", "pattern": PREFIX_HASHES_PATTERN},
                "The gateway's hashes of the prompt's text blocks.",
            ),
            _header(HEADER_USAGE, {"enum": ["0", "1"]}, "1: a stream ends with a comment that holds its usage."),
            _header(HEADER_REQUEST_ID, {"type": "string"}, "Comes back in the answer and is in the log."),
        ]
    return parameters


def _header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}
