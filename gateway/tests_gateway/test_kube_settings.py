"""A gateway's environment in a cluster: defaults, every variable, and refusals that name the variable."""

from __future__ import annotations

import pytest
from modelfleet_gateway.config import DrainConfig, GatewayConfig, InternalConfig, LimitsConfig
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.kube_settings import config_of_environment


def test_an_empty_environment_refuses_strangers_and_listens_on_every_address() -> None:
    expected = GatewayConfig(listen=":8080", internal=InternalConfig(listen=":8081"))
    assert expected.anonymous is None
    assert config_of_environment({}) == expected
    unset = {"MODELFLEET_GATEWAY_ANONYMOUS": "", "MODELFLEET_GATEWAY_INTERNAL_KEY_FILE": "", "HOME": "/"}
    assert config_of_environment(unset) == expected


def test_every_variable_has_its_place_in_the_configuration() -> None:
    environment = {
        "MODELFLEET_GATEWAY_HTTP_PORT": "9000",
        "MODELFLEET_GATEWAY_INTERNAL_PORT": "9001",
        "MODELFLEET_GATEWAY_INTERNAL_KEY_FILE": "/keys/internal",
        "MODELFLEET_GATEWAY_ANONYMOUS": "true",
        "MODELFLEET_GATEWAY_DRAIN_TIMEOUT_SECONDS": "7",
    }
    assert config_of_environment(environment) == GatewayConfig(
        listen=":9000",
        internal=InternalConfig(listen=":9001", key_file="/keys/internal"),
        anonymous=LimitsConfig(),
        drain=DrainConfig(timeout_seconds=7.0),
    )


def test_each_variable_that_cannot_be_used_is_named_with_its_limit_and_what_was_given() -> None:
    environment = {"MODELFLEET_GATEWAY_HTTP_PORT": "99999", "MODELFLEET_GATEWAY_ANONYMOUS": "perhaps"}
    with pytest.raises(ConfigError) as refused:
        config_of_environment(environment)
    assert str(refused.value).splitlines() == [
        "MODELFLEET_GATEWAY_HTTP_PORT: Input should be less than or equal to 65535, given '99999'",
        "MODELFLEET_GATEWAY_ANONYMOUS: Input should be a valid boolean, unable to interpret input, given 'perhaps'",
    ]
