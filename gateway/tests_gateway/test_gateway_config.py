"""The configuration file: its mistakes are told with the field's path, its documentation is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet_gateway.config import GatewayConfig, parse_config, read_config
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet import Endpoint, HoldPolicy, Model, ModelId
from modelfleet_gateway.fleet_source import FileSource, build_snapshot
from modelfleet_gateway.main import EXIT_BAD_CONFIG, main

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "gateway.md"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "f: must be a mapping of fields, given list"),
        ({"models": [{"name": "A"}]}, "f: models.0.name: String should match pattern"),
        ({"models": [{"name": "a", "endpoints": [{"url": "http://x/v1"}]}]}, "f: models.0.endpoints.0.url: String"),
        ({"modells": []}, "f: modells: Extra inputs are not permitted"),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "f: models: a.default more than once"),
        ({"routes": [{"aliases": ["x"], "targets": [{"model": "b"}]}]}, "f: routes: the target b.default is none of"),
        ({"timeouts": {"idleSeconds": 0}}, "f: timeouts.idleSeconds: Input should be greater than 0, given 0"),
        (
            {"tenants": [{"name": "t", "keyHashes": ["secret"]}]},
            "f: tenants.0.keyHashes.0: String should match pattern",
        ),
    ],
)
def test_a_mistake_names_its_field(content: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(content, origin="f")
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_yaml_or_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(tmp_path / "bad.yaml")


def test_the_command_checks_a_file_and_tells_a_mistake_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: [{name: a}]")
    assert main(["--config", str(path), "--check"]) == 0
    path.write_text("models: [{nam: a}]")
    assert main(["--config", str(path)]) == EXIT_BAD_CONFIG
    assert capsys.readouterr().err == f"modelfleet-gateway: {path}: models.0.name: Field required\n"


def test_a_file_becomes_models_and_endpoints() -> None:
    hold = {"maxRequests": 3, "timeoutSeconds": 4}
    endpoints = [{"url": "http://h:1"}, {"url": "http://h:2", "uid": "two", "weight": 2.5}]
    content = {"models": [{"name": "a", "namespace": "n", "servedName": "org/a", "hold": hold, "endpoints": endpoints}]}
    model = ModelId(namespace="n", name="a")
    fleet = build_snapshot(parse_config(content, origin="f")).fleet
    assert fleet.models == {
        model: Model(id=model, served_name="org/a", hold=HoldPolicy(max_requests=3, timeout_seconds=4.0))
    }
    assert fleet.endpoints == {
        "a.n@h:1": Endpoint(uid="a.n@h:1", model=model, base_url="http://h:1"),
        "two": Endpoint(uid="two", model=model, base_url="http://h:2", weight=2.5),
    }


def test_a_wrong_file_changes_nothing_and_a_right_one_is_told_to_subscribers(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: [{name: a}]")
    source = FileSource(path, read_config(path))
    news: list[int] = []
    source.subscribe(lambda snapshot: news.append(len(snapshot.fleet.models)))
    path.write_text("models: [{name: A}]")
    assert source.reload() is False
    assert len(source.current.fleet.models) == 1
    path.write_text("models: [{name: a}, {name: b}]")
    assert source.reload() is True
    assert source.reload() is True
    assert news == [2]


def test_the_example_of_the_guide_is_valid_and_has_at_most_15_lines() -> None:
    example = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len(example.splitlines()) <= 15
    config = parse_config(yaml.safe_load(example), origin="guide")
    assert [model.name for model in config.models] == ["chat"]


def test_the_guides_table_has_each_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    defaults = GatewayConfig().model_dump(by_alias=True, mode="json")
    documented = {name: yaml.safe_load(value) for name, value in rows}
    flat = {
        f"{name}.{key}" if key else name: value
        for name, found in defaults.items()
        if name not in ("models", "routes", "tenants", "anonymous")
        for key, value in (found.items() if isinstance(found, dict) else [("", found)])
    }
    assert documented == flat
