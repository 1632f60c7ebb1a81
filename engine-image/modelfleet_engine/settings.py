"""The command line: one `EngineConfig`, whether from a file (Kubernetes) or from flags (a laptop)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from modelfleet_api.engine_config import Dtype, EngineConfig
from pydantic import ValidationError

from modelfleet_engine.errors import ModelError

DEFAULT_HOST = "0.0.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `serve` needs: the configuration shared with the operator, and the address to listen on."""

    config: EngineConfig
    host: str


# Flags with a number or a text: (EngineConfig's field, metavar, help). The default, where there is one, is shown too.
_NUMBERS = (
    ("port", "PORT", "port to listen on; 0 takes a free one"),
    ("max_model_len", "TOKENS", "longest prompt and answer together (default: what model and KV cache allow)"),
    ("max_num_seqs", "N", "sequences that run at the same time"),
    ("max_num_batched_tokens", "TOKENS", "tokens computed in one step"),
    ("block_tokens", "TOKENS", "tokens in one KV block"),
    ("kv_cache_bytes", "BYTES", "size of the KV cache (default: what memory allows)"),
    ("itl_target_milliseconds", "MS", "cut prompts so that the time between tokens stays below (default: off)"),
    ("max_queued_tokens", "TOKENS", "prompts and expected answers that may wait (default: 256 full steps)"),
    ("drain_timeout_seconds", "SECONDS", "how long running requests may take after SIGTERM"),
    ("accept_after_sigterm_seconds", "SECONDS", "how long new requests are still accepted after SIGTERM"),
)
_TEXTS = (
    ("kernel_backend", "NAME", "cpu, torch_cpu or reference (default: the best that computes this model here)"),
    ("internal_key_path", "FILE", "a file with the keys of which requests must show one (default: everybody may ask)"),
    ("otlp_endpoint", "URL", "an OpenTelemetry collector, such as http://collector:4318 (default: no traces)"),
    ("served_model_name", "NAME", "the `model` of requests (default: the directory's name)"),
)
_CHOICES = (
    ("dtype", get_args(Dtype), "number format of the weights (default: auto)"),
    ("device", ("auto", "cpu", "cuda"), "where to compute (default: auto)"),
)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `modelfleet-engine serve`. Flags that are not given leave EngineConfig's defaults."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the model directory (safetensors)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="an EngineConfig as JSON, instead of DIR and flags")
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    for name, metavar, text in _NUMBERS:
        default = EngineConfig.model_fields[name].default
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(_flag(name), type=int, metavar=metavar, default=argparse.SUPPRESS, help=text + shown)
    for name, metavar, text in _TEXTS:
        parser.add_argument(_flag(name), metavar=metavar, default=argparse.SUPPRESS, help=text)
    for name, choices, text in _CHOICES:
        parser.add_argument(_flag(name), choices=choices, default=argparse.SUPPRESS, help=text)
    parser.add_argument(
        "--no-prefix-caching",
        dest="prefix_caching",
        action="store_false",
        default=argparse.SUPPRESS,
        help="compute every prompt in full, even where another began alike",
    )


def parse_serve_options(arguments: argparse.Namespace) -> ServeOptions:
    """Turns parsed arguments into options.

    Raises:
        ModelError: the configuration file or a value in it is not usable.
        ValueError: the arguments do not go together.
    """
    flags = {name: value for name, value in vars(arguments).items() if name in EngineConfig.model_fields}
    if arguments.config is not None:
        if arguments.directory is not None or flags:
            raise ValueError("--config takes the place of DIR and of every flag but --host")
        return ServeOptions(config=read_config(arguments.config), host=arguments.host)
    if arguments.directory is None:
        raise ValueError("either DIR or --config FILE is needed")
    directory = Path(arguments.directory).resolve()
    flags.setdefault("served_model_name", directory.name)
    try:
        config = EngineConfig(model_path=str(directory), **flags)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from error
    return ServeOptions(config=config, host=arguments.host)


def read_config(path: Path) -> EngineConfig:
    """The operator's EngineConfig. Raises ModelError if it is missing or wrong."""
    try:
        return EngineConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"the engine configuration cannot be read: {error}") from error
    except ValidationError as error:
        raise ModelError(f"{path}: {_first_problem(error)}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, given {problem['input']!r}"
