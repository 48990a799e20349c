"""Folders for temporary files: none is left for ever, none is taken from who works in it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nettrim import scratch
from nettrim.scratch import scratch_folder

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import sys, time
from nettrim.scratch import scratch_folder
class Owner: pass
owner = Owner()
print(scratch_folder(owner, sys.argv[1])[0], flush=True)
time.sleep(100)
"""


class Owner:
    pass


def test_a_folder_goes_with_its_owner(tmp_path: Path) -> None:
    owner = Owner()
    folder, _ = scratch_folder(owner, tmp_path)
    (folder / "file").write_text("x")
    assert folder.name.startswith(f"nettrim-{socket.gethostname()}-{os.getpid()}-") and folder.parent == tmp_path
    other = Owner()
    assert scratch_folder(other, tmp_path)[0] != folder  # this process's own are not swept
    assert (folder / "file").exists()
    del owner
    assert not folder.exists()


def test_those_of_killed_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        (folder / "file").write_text("x")
        owner = Owner()
        scratch_folder(owner, tmp_path)
        assert (folder / "file").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert folder.exists()
    other = Owner()
    scratch_folder(other, tmp_path)
    assert not folder.exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    host = socket.gethostname()
    aside = tmp_path / "aside"
    aside.mkdir()
    foreign = [tmp_path / name for name in ("nettrim-elsewhere-1-abc", f"nettrim-{host}", f"nettrim-{host}-1-notes.d")]
    for folder in foreign:
        folder.mkdir()
    link, file = tmp_path / f"nettrim-{host}-1-abc", tmp_path / f"nettrim-{host}-2-abc"
    link.symlink_to(aside)
    file.write_text("x")
    owner = Owner()
    scratch_folder(owner, tmp_path)
    assert all(path.exists() for path in (aside, link, file, *foreign))


def test_where_nothing_can_be_locked_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    left = tmp_path / f"nettrim-{socket.gethostname()}-1-abc"
    left.mkdir()
    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    owner = Owner()
    folder, _ = scratch_folder(owner, tmp_path)
    assert folder.exists() and not folder.name.startswith(f"nettrim-{socket.gethostname()}")
    monkeypatch.undo()
    other = Owner()
    scratch_folder(other, tmp_path)
    assert folder.exists() and not left.exists()  # its lock is free, and its name does not say that it had one
