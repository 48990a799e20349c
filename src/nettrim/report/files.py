"""Writing texts of a report."""

from __future__ import annotations

import os
from pathlib import Path

from nettrim.errors import InputError, should
from nettrim.files import atomic_write


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text whole or not at all.

    Raises InputError when the file cannot be written.
    """
    target = Path(path)
    try:
        atomic_write(target, text.encode())
    except OSError as error:
        cure = f"{error.strerror or 'The system refused'}: choose a directory that exists and that you may write to."
        raise InputError(should("path", "a file that can be written", repr(str(target)), cure)) from error
    return target
