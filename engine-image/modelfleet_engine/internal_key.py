"""The key that gateways show to engines, from a file of a mounted Secret.

Several keys are valid at once, one a line or separated by commas, so that a key is changed without a moment in which a
gateway and its engines disagree: add the new one, change the gateways, remove the old one. Never logged.
"""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path

from modelfleet_engine.errors import ModelError
from modelfleet_engine.logs import log_event

# A Secret holds at most 1 MiB; a key file is some lines.
MAX_KEY_FILE_BYTES = 64 * 1024
_SEPARATORS = re.compile(rb"[,\s]+")

_Signature = tuple[int, int, int, int]


class InternalKey:
    """Whether a request may come in. An absent or empty file, or no path at all, lets everybody in.

    The file is read again when it is another one: the kubelet swaps the directory a mounted Secret points to, so that
    what the path leads to has another inode. Looking costs one `stat` a request (about 2 µs).
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._signature: _Signature | None = None
        self._keys: tuple[bytes, ...] = ()

    def check_readable(self) -> None:
        """Reads the file for the first time. Raises ModelError if it is there and cannot be read."""
        try:
            self._refresh()
        except OSError as error:
            raise ModelError(f"the internal key cannot be read: {error}") from error

    def admits(self, given: str | None) -> bool:
        """Whether `given`, the header's value, is one of the keys, or no key is asked for.

        Raises:
            OSError: the file is there and cannot be read; nobody is let in on a guess.
        """
        self._refresh()
        if not self._keys:
            return True
        shown = b"" if given is None else given.encode("utf-8", "surrogateescape")
        # Every key is compared in full, so that the time tells nothing.
        matches = [hmac.compare_digest(shown, key) for key in self._keys]
        return any(matches)

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            found = os.stat(self._path)
            signature = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if signature == self._signature:
                return
            with self._path.open("rb") as file:
                content = file.read(MAX_KEY_FILE_BYTES)
        except FileNotFoundError:
            signature, content = None, b""
        keys = tuple(dict.fromkeys(key for key in _SEPARATORS.split(content) if key))
        if signature != self._signature or keys != self._keys:
            log_event("internal_key", keys=len(keys))
        self._signature, self._keys = signature, keys
