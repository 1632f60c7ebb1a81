"""`modelfleet-gateway --config FILE`: the gateway by itself, over models and engines that a file names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from modelfleet_gateway.config import GatewayConfig, read_config
from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.fleet_source import FileSource
from modelfleet_gateway.logs import configure_logging
from modelfleet_gateway.server import Gateway, serve

EXIT_BAD_CONFIG = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="modelfleet-gateway", description="One OpenAI URL for a fleet of models.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="models, engines, tenants (YAML)")
    parser.add_argument("--check", action="store_true", help="only say whether the file is valid")
    arguments = parser.parse_args(argv)
    try:
        config = read_config(arguments.config)
        if arguments.check:
            return 0
        configure_logging()
        return uvloop.run(_serve(arguments.config, config))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"modelfleet-gateway: {error}\n")
        return EXIT_BAD_CONFIG if isinstance(error, ConfigError) else 1


async def _serve(path: Path, config: GatewayConfig) -> int:
    source = FileSource(path, config)
    return await serve(Gateway(config, source), on_hangup=source.reload)


if __name__ == "__main__":
    sys.exit(main())
