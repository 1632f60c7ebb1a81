"""Renders a model's own chat template as transformers does: sandboxed jinja2 with the same names in scope.

The template is data from the model directory: it can read what it is given and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from modelfleet_engine.errors import ModelError, RequestError


class _GenerationTag(jinja2.ext.Extension):
    """Accepts `{% generation %}…{% endgeneration %}`, which only matters for training, as plain content."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    """What templates call to refuse a conversation, e.g. one whose roles do not alternate."""
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Like transformers and unlike jinja2's own filter: no HTML escaping."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    """The local time, for templates that state the date."""
    return datetime.now().astimezone().strftime(pattern)


def _goes_through_parts(source: jinja2.nodes.Template) -> bool:
    """Whether a loop of the template is over some message's `content`, as vLLM tells."""
    for loop in source.find_all(jinja2.nodes.For):
        iterated: jinja2.nodes.Node | None = loop.iter
        while isinstance(iterated, jinja2.nodes.Filter):
            iterated = iterated.node
        match iterated:
            case jinja2.nodes.Getattr(attr="content"):
                return True
            case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
                return True
    return False


class ChatTemplate:
    """One compiled template. Raises ModelError if it cannot be compiled.

    As in vLLM, a template that goes through the parts of a content is given parts, and any other one text, where each
    part begins a line.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            parsed = environment.parse(source)
            self._template = environment.from_string(parsed)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template is not valid jinja2: {error}") from error
        self._takes_parts = _goes_through_parts(parsed)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages, ending where the assistant's answer begins.

        A message's `content` is text or a list of OpenAI's text parts.
        `arguments` are further names for the template; those below are not theirs to set.

        Raises:
            RequestError: the template refuses the conversation.
        """
        names = {
            **(arguments or {}),
            **self._special_tokens,
            "messages": [{**message, "content": self._content(message["content"])} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(names)
        # The template is data and so are its arguments: whatever it raises is about this conversation.
        except Exception as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}",
                param="messages",
                code="invalid_messages",
            ) from error

    def _content(self, content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
        if self._takes_parts:
            return [{"type": "text", "text": content}] if isinstance(content, str) else content
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
