"""Request bytes to a typed body, or an OpenAI-shaped error that names the field.

Three kinds of fields besides those we honour: neutral values equal absence; harmless ones change nothing about
the answer and are accepted; everything else is refused by name, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from modelfleet_engine.errors import RequestError
from modelfleet_engine.http.schema import StrictBody

Body = TypeVar("Body", bound=StrictBody)

# Of what a client sent, in an error message.
MAX_SHOWN_CHARACTERS = 80

HARMLESS_FIELDS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Fields we do not support, with the values that ask for nothing. null asks for nothing anywhere.
NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "bad_words": ([],),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
NEUTRAL_MESSAGE_VALUES: Mapping[str, tuple[object, ...]] = {"tool_calls": ([],), "annotations": ([],)}
NEUTRAL_STREAM_VALUES: Mapping[str, tuple[object, ...]] = {
    "include_obfuscation": (False,),
}


def parse_body(raw: bytes, body_type: type[Body]) -> Body:
    """Parses and checks a request body.

    Raises:
        RequestError: 400 that names the first wrong field and says what is wrong with it.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The request body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise RequestError("The request body must be a JSON object.", code="invalid_json")
    try:
        return body_type.model_validate(_without_neutral_fields(value))
    except ValidationError as error:
        raise _request_error(error) from error


def _without_neutral_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Drops what asks for nothing, at the top, in messages and in stream_options."""
    kept = {name: value for name, value in _drop(body, NEUTRAL_VALUES).items() if name not in HARMLESS_FIELDS}
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = [
            _drop(message, NEUTRAL_MESSAGE_VALUES) if isinstance(message, dict) else message for message in messages
        ]
    options = kept.get("stream_options")
    if isinstance(options, dict):
        kept["stream_options"] = _drop(options, NEUTRAL_STREAM_VALUES)
        if not kept["stream_options"]:
            del kept["stream_options"]
    return kept


def _drop(fields: Mapping[str, Any], neutral: Mapping[str, tuple[object, ...]]) -> dict[str, Any]:
    return {
        name: value
        for name, value in fields.items()
        if value is not None and not any(_are_equal(value, same) for same in neutral.get(name, ()))
    }


def _are_equal(value: object, same: object) -> bool:
    # As JSON has it: 1 == True in Python, and `echo: 0` is a mistake worth naming.
    return isinstance(value, bool) == isinstance(same, bool) and value == same


def _request_error(error: ValidationError) -> RequestError:
    """The first violation as an OpenAI error."""
    problem = _most_telling(error.errors(include_url=False))
    if problem["type"] == "value_error":
        # Our own cross-field rules start with the field they blame.
        param, _, message = str(problem["ctx"]["error"]).partition(": ")
        return RequestError(f"{param}: {message}", param=param, code="invalid_value")
    param = _path(problem["loc"], names_a_field=problem["type"] == "extra_forbidden")
    match problem["type"]:
        case "too_many_fields":
            where = param or "The request body"
            return RequestError(f"{where}: {problem['msg']}.", param=param or None, code="invalid_value")
        case "missing":
            return RequestError(f"Missing required field: {param}.", param=param, code="missing_field")
        case "extra_forbidden":
            return RequestError(f"{param} is not supported by this engine.", param=param, code="unsupported_field")
    return RequestError(
        f"{param}: {problem['msg']}, given {_shown(problem['input'])}.", param=param, code="invalid_value"
    )


def _shown(value: object) -> str:
    """A scalar or short string as it was written; of anything else its type, however large or deep it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARACTERS:
        return f"a string of {len(value)} characters"
    return orjson.dumps(value).decode()


def _most_telling(problems: list[ErrorDetails]) -> ErrorDetails:
    """The first problem; for a field of several allowed types, that of the type that was meant.

    pydantic reports every branch of a union: "not a string" tells nothing about a list with one bad item.
    """
    first = problems[0]
    same_field = [problem for problem in problems if problem["loc"][:1] == first["loc"][:1]]
    contents = [problem for problem in same_field if not problem["type"].endswith("_type")]
    return contents[0] if contents else first


def _path(location: tuple[int | str, ...], *, names_a_field: bool) -> str:
    """`messages[0].content` from pydantic's location, without the names of union branches.

    `names_a_field`: the last part is a name from the request, whatever it looks like.
    """
    path = ""
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(part, int):
            path += f"[{part}]"
        elif index == 0 or (is_last and names_a_field):
            path += ("." if index else "") + _shown_name(part)
        elif part.isidentifier() and part not in _UNION_BRANCHES:
            # A key of an object whose keys are the client's, such as logit_bias.
            path += "." + _shown_name(part)
    return path


def _shown_name(name: str) -> str:
    """A plain name as it is; an empty or odd one quoted, a long one cut."""
    short = name if len(name) <= MAX_SHOWN_CHARACTERS else name[: MAX_SHOWN_CHARACTERS - 3] + "..."
    return short if _PLAIN_NAME.fullmatch(short) else orjson.dumps(short).decode()


_PLAIN_NAME = re.compile(r"[\w.-]+")
_UNION_BRANCHES = frozenset({"str"})
