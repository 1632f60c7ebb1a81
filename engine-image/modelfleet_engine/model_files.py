"""What the model directory's small JSON files say about serving: end tokens, sampling defaults, templates.

Reads files and nothing else; unknown keys are left alone. Weights and shapes are the model runner's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from modelfleet_engine.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """`generation_config.json`'s sampling values; a request's own values win.

    As in vLLM, `do_sample` is not read: a model that names a temperature means it, and one that does not gets
    OpenAI's defaults. `max_new_tokens` bounds the answer where the request does not.
    """

    temperature: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(strict=True, ge=-1)] = 0
    min_p: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0
    max_new_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The parsed side files of one model directory. `special_tokens` maps e.g. `eos_token` to its text."""

    eos_token_ids: frozenset[int]
    special_tokens: Mapping[str, str]
    chat_template: str | None
    defaults: SamplingDefaults


def read_model_files(directory: Path) -> ModelFiles:
    """Reads the side files. Raises ModelError where one is there and cannot be understood."""
    tokenizer_config = _read_json(directory / "tokenizer_config.json")
    generation = _read_json(directory / "generation_config.json")
    config = _read_json(directory / "config.json")
    special_tokens = _special_tokens(_read_json(directory / "special_tokens_map.json"))
    special_tokens.update(_special_tokens(tokenizer_config))
    return ModelFiles(
        eos_token_ids=_token_ids(generation) | _token_ids(config),
        special_tokens=special_tokens,
        chat_template=_chat_template(directory, tokenizer_config),
        defaults=_sampling_defaults(generation),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object but a {type(value).__name__}")
    return value


def _token_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """`eos_token_id`, which is an id or a list of ids."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in values):
        raise ModelError(f"eos_token_id must be an id or a list of ids, not {value!r}")
    return frozenset(values)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The `…_token` entries; each is its text or an object with `content`."""
    tokens: dict[str, str] = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja` if there is one, else the entry of tokenizer_config.json (maybe a named list)."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ModelError(f"chat_template must be text or a list of named texts, not {template!r}")
    return template


def _sampling_defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    names = SamplingDefaults.__dataclass_fields__
    given = {name: generation[name] for name in names if generation.get(name) is not None}
    try:
        return TypeAdapter(SamplingDefaults).validate_python(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ModelError(
            f"generation_config.json: {problem['loc'][0]}: {problem['msg']}, given {problem['input']!r}"
        ) from error
