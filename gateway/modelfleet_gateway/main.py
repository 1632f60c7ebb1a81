"""`modelfleet-gateway`: over the models of the cluster it runs in, or with `--config FILE` over those a file names."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from modelfleet_gateway.config import GatewayConfig, read_config
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet_source import FileSource
from modelfleet_gateway.kube_settings import config_of_environment
from modelfleet_gateway.kube_source import kubernetes_source
from modelfleet_gateway.logs import configure_logging
from modelfleet_gateway.server import Gateway, serve

EXIT_BAD_CONFIG = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="modelfleet-gateway", description="One OpenAI URL for a fleet of models.")
    file_help = "models, engines, tenants (YAML); without it, the models of the cluster"
    parser.add_argument("--config", type=Path, metavar="FILE", help=file_help)
    parser.add_argument("--check", action="store_true", help="only say whether the configuration is valid")
    arguments = parser.parse_args(argv)
    path: Path | None = arguments.config
    try:
        config = config_of_environment(os.environ) if path is None else read_config(path)
        if arguments.check:
            return 0
        configure_logging()
        return uvloop.run(_serve_cluster(config) if path is None else _serve_file(path, config))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"modelfleet-gateway: {error}\n")
        return EXIT_BAD_CONFIG if isinstance(error, ConfigError) else 1


async def _serve_file(path: Path, config: GatewayConfig) -> int:
    source = FileSource(path, config)
    return await serve(Gateway(config, source), on_hangup=source.reload)


async def _serve_cluster(config: GatewayConfig) -> int:
    source = kubernetes_source(config)
    # Until `serve` has its own: the first process of a container has no default, and there is nothing to end in order.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    # It listens, hence is ready, only with the whole fleet: what is unknown before may well exist.
    async with source.started(on_failure=lambda: signal.raise_signal(signal.SIGTERM)):
        # The watches tell by themselves what a file is read again for.
        return await serve(Gateway(config, source), on_hangup=lambda: None)


if __name__ == "__main__":
    sys.exit(main())
