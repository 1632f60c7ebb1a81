"""The key shared by gateways, engines and operator, from a file of a mounted Secret. Never logged.

Several keys are valid at once, one a line or separated by commas; the first is the one shown to engines. So a key is
changed without a moment of disagreement: add the new one last, make it first everywhere, remove the old one.
"""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path

from modelfleet_gateway.errors import ConfigError
from modelfleet_gateway.logs import log_event

MAX_KEY_FILE_BYTES = 64 * 1024
_SEPARATORS = re.compile(rb"[,\s]+")

_Signature = tuple[int, int, int, int]


class InternalKey:
    """The keys as of the last `refresh`. An absent or empty file, or no path at all: everybody may ask."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._signature: _Signature | None = None
        self._keys: tuple[bytes, ...] = ()
        self.shown: str | None = None

    def refresh(self) -> None:
        """Reads the file again if it is another one: the kubelet swaps the directory a mounted Secret points to.

        Raises:
            ConfigError: it is there and cannot be read, or holds what is no header's value.
        """
        if self._path is None:
            return
        try:
            found = os.stat(self._path)
            signature = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if signature == self._signature:
                return
            with self._path.open("rb") as file:
                content = file.read(MAX_KEY_FILE_BYTES)
            keys = tuple(dict.fromkeys(key for key in _SEPARATORS.split(content) if key))
            shown = keys[0].decode("ascii") if keys else None
        except FileNotFoundError:
            signature, keys, shown = None, (), None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path}: the internal key cannot be read: {type(error).__name__}") from error
        if keys != self._keys:
            log_event("internal_key", keys=len(keys))
        self._signature, self._keys, self.shown = signature, keys, shown

    def admits(self, given: str | None) -> bool:
        """Whether `given`, the header's value, is one of the keys, or no key is asked for."""
        if not self._keys:
            return True
        shown = b"" if given is None else given.encode("utf-8", "surrogateescape")
        # Every key is compared in full, so that the time tells nothing.
        matches = [hmac.compare_digest(shown, key) for key in self._keys]
        return any(matches)
