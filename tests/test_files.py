"""A file is there whole, or as it was before."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import BinaryIO

import pytest

from nettrim.files import atomic_write


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"another"):
        atomic_write(path, content)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_a_function_may_write_the_file_and_go_back_in_it(tmp_path: Path) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(b"?bc")
        stream.seek(0)
        stream.write(b"a")

    atomic_write(tmp_path / "file", write)
    assert (tmp_path / "file").read_bytes() == b"abc"


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_checked_is_the_new_file_before_it_is_in_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def check(temporary: Path) -> None:
        assert temporary.read_bytes() == b"new" and path.read_bytes() == b"old"
        assert temporary.name.endswith(f"{socket.gethostname()}.{os.getpid()}")
        raise KeyError("wrong")

    with pytest.raises(KeyError):
        atomic_write(path, b"new", check)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_refusal_of_the_system_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "absent" / "file", b"new")
