"""A structured log: JSON lines, one line a finished unit of work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "log.jsonl"  # its name in a checkpoint


@dataclass(frozen=True)
class Log:
    """Appends lines to a file; several processes may write to the same one.

    A log is no proof of anything: a line that the disk refuses is lost and the run goes on.
    """

    path: Path

    def write(self, line: Mapping[str, Any]) -> None:
        """One line, with the time in seconds since 1970 as "time"; a single write, so lines do not mix."""
        text = json.dumps({"time": round(time.time(), 3), **line}) + "\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, text.encode())
            finally:
                os.close(handle)
        except OSError:
            return

    @property
    def size(self) -> int:
        """Of the file, in bytes; 0 where there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


class Silence:
    """How long nobody has written to a log: a sign that nobody who does is alive."""

    def __init__(self, log: Log) -> None:
        self._log, self._size, self._since = log, log.size, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this object was made, or since it was last asked and the log had grown."""
        if (size := self._log.size) != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since
