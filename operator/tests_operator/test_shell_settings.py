"""The environment: defaults, and one clear line for each value that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from modelfleet_operator.settings import Settings, SettingsError, load_settings


def test_only_the_engine_image_has_no_default() -> None:
    settings = load_settings({"MODELFLEET_ENGINE_IMAGE": "engine:1", "MODELFLEET_POD_NAME": "me", "PATH": "/bin"})
    assert settings == Settings(engine_image="engine:1", pod_name="me")
    assert settings.model_dump() == {
        "engine_image": "engine:1",
        "engine_gpu_image": None,
        "engine_pull_policy": "IfNotPresent",
        "system_namespace": "modelfleet-system",
        "pod_name": "me",
        "log_level": "INFO",
        "http_port": 8080,
        "leader_election": True,
        "workers": 16,
    }


def test_values_are_read_as_a_chart_writes_them() -> None:
    environment = {
        "MODELFLEET_ENGINE_IMAGE": "engine:1",
        "MODELFLEET_ENGINE_GPU_IMAGE": "",
        "MODELFLEET_LEADER_ELECTION": "false",
        "MODELFLEET_WORKERS": "4",
        "MODELFLEET_LOG_LEVEL": "debug",
    }
    settings = load_settings(environment)
    assert (settings.engine_gpu_image, settings.leader_election, settings.workers, settings.log_level) == (
        None,
        False,
        4,
        "DEBUG",
    )


def test_every_bad_value_is_told_with_its_limit_and_what_was_given() -> None:
    environment = {
        "MODELFLEET_ENGINE_PULL_POLICY": "Sometimes",
        "MODELFLEET_HTTP_PORT": "70000",
        "MODELFLEET_WORKERS": "many",
    }
    with pytest.raises(SettingsError) as caught:
        load_settings(environment)
    assert str(caught.value).splitlines() == [
        "MODELFLEET_ENGINE_IMAGE: Field required",
        "MODELFLEET_ENGINE_PULL_POLICY: Input should be 'Always', 'IfNotPresent' or 'Never', given 'Sometimes'",
        "MODELFLEET_HTTP_PORT: Input should be less than or equal to 65535, given '70000'",
        "MODELFLEET_WORKERS: Input should be a valid integer, unable to parse string as an integer, given 'many'",
    ]


def test_the_process_ends_with_code_2_and_says_why() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELFLEET_")}
    ended = subprocess.run(
        [sys.executable, "-m", "modelfleet_operator.main"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 2
    assert ended.stderr == "modelfleet-operator cannot start:\nMODELFLEET_ENGINE_IMAGE: Field required\n"
