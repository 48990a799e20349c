"""Finished parts come back as they were; damaged, foreign or half-written ones do not come back."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nettrim.experiments.checkpoints import Cell, Checkpoints, settings_digest
from nettrim.experiments.context import Context


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "parts", "digest")


def test_numbers_and_arrays_come_back(checkpoints):
    checkpoints.write("a/b c", Cell({"x": 1.5, "list": [1, 2]}, {"w": torch.arange(6.0).reshape(2, 3).T}, 2.0, "me"))
    back = checkpoints.read("a/b c")
    assert back is not None
    assert back.numbers == {"x": 1.5, "list": [1, 2]}
    assert torch.equal(back.arrays["w"], torch.arange(6.0).reshape(2, 3).T)
    assert (back.seconds, back.made_by) == (2.0, "me")


def test_names_that_look_alike_as_files_stay_apart(checkpoints):
    for key in ("a/b", "a b", "a_b"):
        checkpoints.write(key, Cell({"key": key}))
    assert [checkpoints.read(key).numbers["key"] for key in ("a/b", "a b", "a_b")] == ["a/b", "a b", "a_b"]


def test_other_settings_make_a_part_stale(checkpoints, tmp_path):
    checkpoints.write("a", Cell({"x": 1}))
    assert Checkpoints(tmp_path / "parts", "another").read("a") is None
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1}) != settings_digest({"a": 1, "b": 3})


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 1}'])
def test_a_damaged_part_is_made_again(checkpoints, suffix, content):
    checkpoints.write("a", Cell({"x": 1}, {"w": torch.ones(3)}))
    (path,) = checkpoints.folder.glob(f"*{suffix}")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert checkpoints.read("a") is None


@pytest.mark.parametrize(
    ("pattern", "key", "wanted"),
    [
        ("net", "net", True),
        ("net", "net/0/a/NT", True),
        ("net/0", "net", True),
        ("net/*/a", "net/1", True),
        ("net/*/a", "net/1/a/NT", True),
        ("net/*/a", "net/1/b/NT", False),
        ("net/*/a", "net/1/b", False),
        ("net/0/a", "net/1", False),
        ("net/0", "other", False),
        ("net", "network", False),
    ],
    ids=lambda value: str(value),
)
def test_a_group_is_wanted_when_something_inside_it_is(checkpoints, pattern, key, wanted):
    assert Context({}, checkpoints, print, only=(pattern,)).wanted(key) is wanted


def test_a_part_is_made_once_and_only_what_is_wanted_is_made(checkpoints):
    said: list[str] = []
    calls: list[str] = []

    def make() -> Cell:
        calls.append("made")
        return Cell({"x": 1.0})

    first = Context({}, checkpoints, said.append, made_by="version 1")
    first.cell("net/a", make)
    again = Context({}, checkpoints, said.append, only=("other",), made_by="version 2")
    assert again.cell("net/a", make).made_by == "version 1"
    assert again.maybe("net/b", make) is None
    assert again.maybe("net/a", make) is not None
    assert again.maybe("other/b", make) is not None
    assert calls == ["made", "made"]
    assert again.made == ["other/b"] and {cell.made_by for cell in again.used.values()} == {"version 1", "version 2"}
    assert len(said) == 2


def test_the_record_tells_what_a_run_came_to_without_its_arrays(checkpoints, tmp_path):
    kept = Cell({"x": 1.5}, {"w": torch.ones(3)}, 2.0, "me")
    checkpoints.write_record({"a": kept, "b": Cell({"y": 1}, seconds=None)})
    later = Checkpoints(tmp_path / "parts", "digest")
    told = later.read("a")
    assert (told.numbers, told.seconds, told.made_by, told.missing) == ({"x": 1.5}, 2.0, "me", ("w",))
    assert not told.arrays and later.read("b").seconds is None
    later.write_record({"b": Cell({"y": 2}), "c": Cell({"z": 3})})
    last = Checkpoints(tmp_path / "parts", "digest")
    assert [last.read(key).numbers for key in "abc"] == [{"x": 1.5}, {"y": 2}, {"z": 3}]
    assert Checkpoints(tmp_path / "parts", "another").read("a") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1, "digest": "digest", "parts": 3}'])
def test_a_damaged_record_is_none(checkpoints, tmp_path, content):
    (tmp_path / "parts.json").write_bytes(content)
    assert checkpoints.read("a") is None


def test_arrays_that_a_record_lacks_are_made_again_where_something_asks_for_them(checkpoints):
    calls: list[str] = []

    def make(value: float) -> Cell:
        calls.append("made")
        return Cell({"x": value}, {"w": torch.full((3,), value)})

    checkpoints.write_record({"a": Cell({"x": 1.0}, {"w": torch.ones(3)}, 2.0, "me")})
    fresh = Checkpoints(checkpoints.folder, "digest")
    context = Context({}, fresh, lambda text: None)
    cell = context.cell("a", lambda: make(2.0))
    assert cell.numbers == {"x": 1.0} and list(cell.arrays) == ["w"] and not calls
    assert torch.equal(cell.arrays["w"], torch.full((3,), 2.0)) and calls == ["made"]
    assert context.notes == ["a was made again for parts that build on it: x 2, before 1."]
    kept = Checkpoints(checkpoints.folder, "digest").read("a")
    assert kept.numbers == {"x": 1.0} and torch.equal(kept.arrays["w"], torch.full((3,), 2.0)) and kept.made_by == "me"


def test_arrays_of_other_shapes_than_were_written_are_made_again(checkpoints):
    checkpoints.write("a", Cell({"x": 1}, {"w": torch.ones(3)}))
    (path,) = checkpoints.folder.glob("*.safetensors")
    save_file({"w": torch.ones(4)}, path)
    assert checkpoints.read("a") is None


def test_a_part_of_an_earlier_version_has_no_hash_and_counts(checkpoints):
    checkpoints.write("a", Cell({"x": 1}, {"w": torch.ones(3)}))
    (path,) = checkpoints.folder.glob("*.json")
    data = json.loads(path.read_text())
    del data["sha256"]
    path.write_text(json.dumps(data))
    assert torch.equal(checkpoints.read("a").arrays["w"], torch.ones(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", "x"), ("numbers", {}), ("numbers", 3), ("made_by", None), ("arrays", "w"), ("arrays", [1])],
    ids=str,
)
def test_a_part_of_wrong_types_or_without_numbers_is_made_again(checkpoints, tmp_path, name, value):
    checkpoints.write("a", Cell({"x": 1}))
    (path,) = checkpoints.folder.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert checkpoints.read("a") is None
    checkpoints.write_record({"b": Cell({"x": 1}), "c": Cell({"x": 2})})
    record = json.loads((tmp_path / "parts.json").read_text())
    record["parts"]["b"][name] = value
    (tmp_path / "parts.json").write_text(json.dumps(record))
    later = Checkpoints(checkpoints.folder, "digest")
    assert later.read("b") is None and later.read("c").numbers == {"x": 2}


@pytest.mark.parametrize(
    ("pattern", "met"),
    [("net/0/a", True), ("net", True), ("*/a", True), ("net/0/a/more", False), ("net/zero", False), ("nat", False)],
)
def test_a_pattern_is_met_by_a_part_not_by_a_group_that_it_lies_under(checkpoints, pattern, met):
    checkpoints.write("net/trained", Cell({"x": 1}))
    context = Context({}, checkpoints, lambda text: None, only=(pattern,))
    context.wanted("net")
    context.cell("net/trained", lambda: Cell({"x": 1}))
    context.maybe("net/0/a", lambda: Cell({"x": 1}))
    assert context.unmet == (() if met else (pattern,))
