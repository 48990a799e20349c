"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from nettrim.errors import InputError, should


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text to a temporary neighbour and rename it: a reader never sees half a file.

    Raises InputError when the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            # mode "x", not tempfile: the file keeps the permissions the user's umask asks for
            with open(temporary, "x", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        cure = f"{error.strerror or 'The system refused'}: choose a directory that exists and that you may write to."
        raise InputError(should("path", "a file that can be written", repr(str(target)), cure)) from error
    return target
