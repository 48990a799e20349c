"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def atomic_write(
    path: Path, content: bytes | Callable[[BinaryIO], object], check: Callable[[Path], None] | None = None
) -> None:
    """Write `content` beside `path`, flush it to the disk and rename it into place: a reader never sees half a file.

    content: the bytes, or a function that writes them to a stream and may go back in it.
    check: called with the temporary file before it takes its place; what it raises leaves no file behind. The
    temporary's name ends in this machine's name and the process's number, by which `sweep` tells what killed processes
    left. Raises OSError when the system refuses.
    """
    owner = f"{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{owner}")
    try:
        # mode "x", not tempfile: the file gets the permissions that the user's umask asks for
        with temporary.open("xb") as stream:
            if callable(content):
                content(stream)
            else:
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


def sweep(folder: Path, names: str) -> None:
    """Remove what killed processes of this machine left half-written in `folder`.

    names: a regular expression for the files that `atomic_write` was to write; temporaries of others are left alone.
    Raises OSError when the system refuses.
    """
    ours = re.compile(rf"\.(?:{names})\.[0-9a-f]{{8}}\.{re.escape(socket.gethostname())}\.([1-9][0-9]*)")
    for entry in list(folder.iterdir()):
        found = ours.fullmatch(entry.name)
        if found is not None and not _alive(int(found[1])) and entry.is_file():
            entry.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
