"""The model directory's tokenizer, template, end tokens and sampling defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from modelfleet_engine.chat_template import ChatTemplate
from modelfleet_engine.errors import ModelError, RequestError
from modelfleet_engine.model_files import SamplingDefaults, read_model_files
from modelfleet_engine.tokenizer import ModelTokenizer

from tests_engine.tiny_model import EOS, EOS_ID, write_tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


def _write(directory: Path, name: str, value: object) -> None:
    (directory / name).write_text(json.dumps(value), encoding="utf-8")


def test_text_survives_the_way_to_ids_and_back(directory: Path) -> None:
    tokenizer = ModelTokenizer(directory)

    assert tokenizer.decode(tokenizer.encode("Füße")) == "Füße"
    assert tokenizer.vocab_size == 259


def test_a_conversation_is_rendered_by_the_models_template(directory: Path) -> None:
    tokenizer = ModelTokenizer(directory)

    token_ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])

    assert token_ids.count(256) == 2
    assert token_ids.count(EOS_ID) == 1
    assert tokenizer.decode(token_ids) == "user\nhi\nassistant\n"


def test_every_end_token_of_every_file_ends_a_sequence(directory: Path) -> None:
    _write(directory, "generation_config.json", {"eos_token_id": [10, 11]})
    _write(directory, "config.json", {"eos_token_id": 12})

    assert ModelTokenizer(directory).eos_token_ids == {10, 11, 12, EOS_ID}


def test_a_model_without_generation_config_gets_openais_defaults(directory: Path) -> None:
    assert ModelTokenizer(directory).defaults == SamplingDefaults()


def test_the_models_sampling_defaults_are_read_and_do_sample_is_not(directory: Path) -> None:
    _write(
        directory,
        "generation_config.json",
        {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 99, "do_sample": False, "other": "x"},
    )

    assert read_model_files(directory).defaults == SamplingDefaults(
        temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=99
    )


def test_a_template_file_wins_over_the_tokenizer_configuration(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")

    tokenizer = ModelTokenizer(directory)

    assert tokenizer.decode(tokenizer.encode_chat([{"role": "user", "content": "hi"}])) == "hi!"


def test_of_several_named_templates_the_default_is_used(directory: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    _write(directory, "tokenizer_config.json", {"chat_template": templates})

    assert read_model_files(directory).chat_template == "yes"


def test_a_model_without_a_template_refuses_conversations_only(directory: Path) -> None:
    _write(directory, "tokenizer_config.json", {})
    tokenizer = ModelTokenizer(directory)

    with pytest.raises(RequestError, match="no chat template") as refusal:
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert refusal.value.param == "messages"
    assert tokenizer.encode("hi")


def test_a_conversation_the_template_refuses_is_the_clients_error(directory: Path) -> None:
    with pytest.raises(RequestError, match="refuses these messages: as you wish"):
        ModelTokenizer(directory).encode_chat([{"role": "user", "content": "refuse me"}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", "[1]", "holds no JSON object but a list"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", '{"eos_token_id": "x"}', "eos_token_id must be an id or a list of ids, not 'x'"),
        ("generation_config.json", '{"top_p": "x"}', "top_p: Input should be a valid number, given 'x'"),
        ("generation_config.json", '{"top_p": true}', "top_p: Input should be a valid number, given True"),
        ("generation_config.json", '{"top_k": 50.0}', "top_k: Input should be a valid integer, given 50.0"),
        ("generation_config.json", '{"max_new_tokens": 0}', "max_new_tokens: .* greater than or equal to 1, given 0"),
        ("generation_config.json", '{"max_new_tokens": -1}', "max_new_tokens: .*, given -1"),
        ("generation_config.json", '{"temperature": NaN}', "temperature: .*, given nan"),
        ("chat_template.jinja", "{% for %}", "chat template is not valid jinja2"),
    ],
)
def test_a_broken_file_is_a_model_error_that_names_it(directory: Path, name: str, content: str, message: str) -> None:
    (directory / name).write_text(content, encoding="utf-8")

    with pytest.raises(ModelError, match=message):
        ModelTokenizer(directory)


def test_a_directory_without_a_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        ModelTokenizer(tmp_path)


def _render(source: str, content: str = "hi") -> str:
    template = ChatTemplate(source, special_tokens={"eos_token": EOS})
    return template.render([{"role": "user", "content": content}])


def test_templates_have_what_transformers_gives_them() -> None:
    assert _render("{{ messages | tojson }}", "<ä>") == '[{"role": "user", "content": "<ä>"}]'
    assert re.fullmatch(r"\d{4}", _render("{{ strftime_now('%Y') }}"))
    assert _render("{% generation %}{{ eos_token }}{% endgeneration %}") == EOS
    assert _render("{% for m in messages %}{% continue %}x{% endfor %}{{ tools is none }}") == "True"
    assert _render("  {% if add_generation_prompt %}\nyes{% endif %}") == "yes"


TEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"
PARTS = "{% for m in messages %}{% for part in m['content'] | list %}<{{ part.text }}>{% endfor %}{% endfor %}"
# Not over the parts but over what the text is split into.
LINES = "{% for m in messages %}{% for line in m.content.split('\\n') %}<{{ line }}>{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "parts", "text"),
    [(TEXT, "a\nb", "hi"), (PARTS, "<a><b>", "<hi>"), (LINES, "<a><b>", "<hi>")],
)
def test_parts_of_a_content_reach_the_template_as_it_takes_them(source: str, parts: str, text: str) -> None:
    template = ChatTemplate(source, special_tokens={})
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert template.render([{"role": "user", "content": content}]) == parts
    assert template.render([{"role": "user", "content": "hi"}]) == text


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(RequestError, match="unsafe"):
        _render("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(RequestError):
        _render("{{ messages.append(1) }}")
