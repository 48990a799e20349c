"""Files of finished work: whole or not at all, of this run or refused, damage seen."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from nettrim import checkpoint
from nettrim.checkpoint import MANIFEST, Checkpoint
from nettrim.errors import InputError

PARTS = ("model", "data", "recipe", "versions")
IDENTITY = {"model": {"fc.weight": "aa", "layers": 2}, "data": {"sha256": "dd"}, "recipe": {"epsilon": 0.1}}


def opened(path, **changes):
    return Checkpoint.open(path, {**IDENTITY, **changes})


def saved(path):
    store = opened(path)
    tensors = {"weight": torch.randn(3, 4), "half": torch.randn(2).bfloat16(), "empty": torch.zeros(0, 3)}
    store.save("fc 0-2", "p1", tensors, {"gap": 0.1 + 0.2, "none": None, "inf": float("inf")})
    return store, tensors


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    store, tensors = saved(tmp_path / "new" / "run")
    found = opened(tmp_path / "new" / "run").load("fc 0-2")
    assert found.program == "p1"
    assert found.record == {"gap": 0.1 + 0.2, "none": None, "inf": float("inf")}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert store.load("fc 3-5") is None


def test_shares_may_open_it_at_the_same_time(tmp_path, monkeypatch):
    """Another one makes the checkpoint just after this one saw that there was none."""
    inner = checkpoint._check_free

    def late(path):
        monkeypatch.setattr(checkpoint, "_check_free", inner)
        saved(tmp_path)
        inner(path)

    monkeypatch.setattr(checkpoint, "_check_free", late)
    assert opened(tmp_path).load("fc 0-2") is not None


def test_a_peek_reads_the_head_alone(tmp_path):
    """What it tells is checked by itself, whatever became of the tensors."""
    store, _ = saved(tmp_path)
    (file,) = tmp_path.glob("*.block")
    content = file.read_bytes()
    assert store.peek("fc 3-5") is None
    for ending in (content, content[:-3]):
        file.write_bytes(ending)
        found = store.peek("fc 0-2")
        assert (found.program, found.record, found.tensors) == (
            "p1", {"gap": 0.1 + 0.2, "none": None, "inf": float("inf")}, {}
        )  # fmt: skip
    for place in (content.index(b"p1"), content.index(b"0.3"), 40):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert store.peek("fc 0-2") is None
    for size in (0, 10, 47, 60):
        file.write_bytes(content[:size])
        assert store.peek("fc 0-2") is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "grown", "renamed"])
def test_damage_counts_as_not_there(tmp_path, damage):
    store, _ = saved(tmp_path)
    (file,) = tmp_path.glob("*.block")
    content = file.read_bytes()
    if damage == "renamed":  # the file of one unit under the name of another
        store.save("fc 3-5", "p1", {}, {})
        (other,) = (path for path in tmp_path.glob("*.block") if path != file)
        other.replace(file)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        changed = {"truncated": content[:-1], "flipped": flipped, "emptied": b"", "grown": content + b"0"}
        file.write_bytes(changed[damage])
    assert store.load("fc 0-2") is None


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"recipe": {"epsilon": 0.2}}, "another recipe: epsilon 0.1 there, 0.2 here"),
        ({"recipe": {"epsilon": 0.1, "positions": 3}}, "another recipe: positions here only"),
        ({"data": {"sha256": "ee"}}, "another data"),
        ({"model": {"fc.weight": "bb", "layers": 2}}, 'another model: fc.weight "aa" there, "bb" here'),
        ({"model": {str(k): 0 for k in range(9)}}, "and 8 more"),
    ],
)
def test_another_run_is_refused_with_the_difference_named(tmp_path, changes, difference):
    saved(tmp_path)
    with pytest.raises(InputError) as caught:
        opened(tmp_path, **changes)
    assert difference in str(caught.value)


def test_other_directories_are_refused(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(InputError, match="holds 'dear.txt' but no checkpoint.json"):
        opened(tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]
    with pytest.raises(InputError, match="can be written"):
        opened(tmp_path / "letters" / "dear.txt")


def test_a_broken_manifest_and_another_format_are_refused(tmp_path):
    saved(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(InputError, match="format 99"):
        opened(tmp_path)
    for wrong in ("{", "5", "[]", *(json.dumps({**manifest, part: wrong}) for part in PARTS for wrong in (5, None))):
        (tmp_path / MANIFEST).write_text(wrong)
        with pytest.raises(InputError, match="unreadable"):
            opened(tmp_path)


def test_other_versions_are_remarked(tmp_path):
    saved(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert "torch 1.0" in opened(tmp_path).notes[0]


def test_half_written_files_of_dead_processes_are_swept_and_others_left(tmp_path):
    saved(tmp_path)
    host = os.uname().nodename
    left = f".fc_0-2.0123abcd.block.89efcdab.{host}"
    dead, living = tmp_path / f"{left}.4194304999", tmp_path / f"{left}.{os.getpid()}"
    first = tmp_path / f".{MANIFEST}.89efcdab.{host}.4194304999"
    elsewhere = tmp_path / ".fc_0-2.0123abcd.block.89efcdab.elsewhere.4194304999"
    foreign = [tmp_path / f".notes.{host}.4194304999", tmp_path / f".notes.txt.89efcdab.{host}.4194304999"]
    for path in (dead, first, living, elsewhere, *foreign):
        path.write_bytes(b"half")
    opened(tmp_path)
    assert [path.exists() for path in (dead, first, living, elsewhere)] == [False, False, True, True]
    assert all(path.exists() for path in foreign)


def test_a_directory_that_is_refused_is_left_as_it_was(tmp_path):
    saved(tmp_path / "run")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    for folder, changes in (("letters", {}), ("run", {"data": {"sha256": "ee"}})):
        left = tmp_path / folder / f".fc_0-2.0123abcd.block.89efcdab.{os.uname().nodename}.4194304999"
        left.write_bytes(b"half")
        with pytest.raises(InputError):
            opened(tmp_path / folder, **changes)
        assert left.exists()


@pytest.mark.parametrize("path", [5, b"run", "a\0b", True, None, "\ud800"], ids=repr)
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="`checkpoint` should be the path of a directory. Got"):
        opened(path)


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    store, _ = saved(tmp_path)
    (file,) = tmp_path.glob("*.block")
    file.unlink()
    file.mkdir()
    for read in (store.load, store.peek):
        with pytest.raises(InputError, match="whose files can be read. Got .*Is a directory"):
            read("fc 0-2")

    def stale(*arguments):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(type(file), "open", stale)
    assert store.load("fc 0-2") is None and store.peek("fc 0-2") is None


def test_units_are_found_by_how_they_begin(tmp_path):
    store, _ = saved(tmp_path)
    names = ["fc samples 1", "fc samples 2", "fc/samples 1", "fc"]
    for name in names:
        store.save(name, "p1", {}, {})
    assert sorted(store.units("fc samples ")) == names[:2]
    assert sorted(store.units("fc")) == ["fc", "fc 0-2", *names[:2], names[2]]
    long = "x" * 200
    store.save(long + " 1", "p1", {}, {})
    assert list(store.units(long)) == [long + " 1"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_tensors_are_never_in_memory_twice(tmp_path):
    """Saving them takes next to nothing, loading them no more than they are."""
    script = MEMORY.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    saving, loading = map(float, done.stdout.split())
    assert saving < 0.5 and loading < 1.5


MEMORY = """
import resource
import torch
from nettrim.checkpoint import Checkpoint

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

store = Checkpoint.open({folder!r}, {{"model": {{}}, "data": {{}}, "recipe": {{}}}})
store.save("warm", "p", {{"x": torch.zeros(9)}}, {{}})
store.load("warm")
x = torch.ones(25_000_000)
size, before = 4 * x.numel(), peak()
store.save("unit", "p", {{"x": x}}, {{}})
saving = peak() - before
found = store.load("unit")
assert torch.equal(found.tensors["x"], x)
print(saving / size, (peak() - before) / size)
"""


def test_a_disk_that_refuses_is_said_and_leaves_no_file(tmp_path, monkeypatch):
    store, _ = saved(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        store.save("fc 3-5", "p1", {"weight": torch.zeros(3)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == before
