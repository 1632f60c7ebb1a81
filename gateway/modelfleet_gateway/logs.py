"""One JSON object per line on standard output: what happened, when, with its figures. Never what was asked."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

_LOGGER = logging.getLogger("modelfleet_gateway")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON line; the fields of `log_event` become keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure_logging() -> None:
    """Sends every logger's lines, ours and the libraries', to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def log_event(event: str, **fields: object) -> None:
    """One line with the given fields."""
    _LOGGER.info(event, extra={"fields": fields})


def log_failure(event: str, error: BaseException, **fields: object) -> None:
    """One line with the traceback, for bugs."""
    _LOGGER.error(event, exc_info=error, extra={"fields": fields})
