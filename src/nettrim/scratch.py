"""Folders for temporary files: they go with who made them or, where that was killed, when the next one is made."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import weakref
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is swept
    fcntl = None


def scratch_folder(
    owner: object, parent: str | os.PathLike[str] | None = None
) -> tuple[Path, weakref.finalize[..., Any]]:
    """A new folder in `parent` (None: the system's for temporary files), removed with all in it when `owner` is, or
    when the function returned beside it is called.

    This process holds a lock on it while it lives, however it ends. Folders of this user and machine whose lock is free
    were left by processes that were killed, and are removed here. Numbers of processes would not tell: containers may
    share a folder and the machine's name, and count their processes apart. Where the file system knows no locks,
    nothing is removed. Raises OSError when the system refuses.
    """
    above = Path(tempfile.gettempdir() if parent is None else parent)
    _sweep(above)
    folder = Path(tempfile.mkdtemp(prefix="nettrim-", dir=above))
    lock = _lock(folder)
    if lock is not None:  # and not before has it a name that is swept
        unique = folder.name.removeprefix("nettrim-")
        folder = folder.rename(above / f"nettrim-{socket.gethostname()}-{os.getpid()}-{unique}")
    return folder, weakref.finalize(owner, _remove, folder, lock)


def _sweep(above: Path) -> None:
    """Remove what killed processes left."""
    ours = re.compile(rf"nettrim-{re.escape(socket.gethostname())}-[0-9]+-[a-z0-9_]+")
    try:
        found = [entry for entry in above.iterdir() if ours.fullmatch(entry.name)]
    except OSError:  # it may be written to and not listed
        return
    for folder in found:
        lock = _lock(folder)
        if lock is not None:
            _remove(folder, lock)


def _lock(folder: Path) -> int | None:
    """The handle that holds a folder's lock; None where another has it, or the folder is not this user's."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(handle).st_uid == os.getuid():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
