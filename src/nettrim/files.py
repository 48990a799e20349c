"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: Path, content: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Write `content` beside `path`, flush it to the disk and rename it into place: a reader never sees half a file.

    check: called with the temporary file before it takes its place; what it raises leaves no file behind. The
    temporary's name ends in this machine's name and the process's number, by which what killed processes left can be
    told. Raises OSError when the system refuses.
    """
    owner = f"{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{owner}")
    try:
        # mode "x", not tempfile: the file gets the permissions that the user's umask asks for
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if check is not None:
            check(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
