"""Finished work on disk: a run that is killed at any moment goes on where it was. No pickle anywhere.

checkpoint.json   which model, data and recipe the directory belongs to, and the versions that wrote it
*.block           one finished unit of work: a hash of what follows, then safetensors with the record as metadata, which
                  has a hash of its own
log.jsonl         one line a unit (`nettrim.log`)

Every file is written beside its place, flushed to the disk and renamed into place: it is there whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.files import atomic_write, sweep
from nettrim.tensors import raw, read_tensors, write_tensors
from nettrim.version import __version__

MANIFEST = "checkpoint.json"
_FORMAT = 1
_PARTS = ("data", "model", "recipe")  # compared in this order: a model's answers are those to the data
_MAGIC = b"nettrim\x01"
_MEASURED = 1e-2  # by which a number that another machine measured may differ
_SHOWN = 3  # differences named in a message
_HEADER = 1 << 26  # bytes of a header that is believed
_HASH = 32  # bytes
_GONE = (errno.ENOENT, errno.ESTALE)  # ESTALE: another machine has replaced or removed the file just now

_T = TypeVar("_T")

Identity = Mapping[str, Mapping[str, Any]]  # "model", "data" and "recipe", each as names and plain values


@dataclass(frozen=True, eq=False)
class Stored:
    """What a unit's file held."""

    program: str  # digest of the program it answers
    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A directory of finished units; make one with `open`."""

    directory: Path
    notes: list[str] = field(default_factory=list)  # for the report: other versions, units they wrote

    @classmethod
    def open(cls, directory: str | os.PathLike[str], identity: Identity) -> Self:
        """A new checkpoint, or an old one of the same model, data and recipe.

        Raises InputError for a checkpoint of anything else, naming the first differences, for a directory that holds
        something else, and for one that cannot be written; such a directory is left as it was.
        """
        path = _path(directory)
        manifest = {
            "format": _FORMAT,
            "versions": {"nettrim": __version__, "torch": torch.__version__, "python": platform.python_version()},
            **json.loads(json.dumps(identity)),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / MANIFEST).exists():
                _check_free(path)
                atomic_write(path / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
            notes = [*_compare(path, manifest)]
            sweep(path, rf"{re.escape(MANIFEST)}|.+\.[0-9a-f]{{8}}\.block")  # not before: now the directory is ours
            return cls(path, notes)
        except OSError as error:
            raise _unwritable(path, error) from error

    def load(self, unit: str) -> Stored | None:
        """A finished unit; None where there is none, or its file is truncated or damaged.

        Raises InputError when the disk refuses.
        """
        found = self._from_file(self.directory / _file_name(unit), _whole)
        return None if found is None else _stored(unit, *found)

    def peek(self, unit: str) -> Stored | None:
        """A finished unit without its tensors: its head alone is read, and checked for damage; None as for `load`.

        Raises InputError when the disk refuses.
        """
        about = self._from_file(self.directory / _file_name(unit), _head)
        return None if about is None else _stored(unit, about, {})

    def units(self, start: str) -> list[str]:
        """The names of the units on disk that begin with `start`, whoever wrote them; not of those with a damaged head.

        Raises InputError when the disk refuses.
        """
        try:
            begin = _readable(start)
            found = sorted(path for path in self.directory.glob("*.block") if path.name.startswith(begin))
        except OSError as error:
            raise _unreadable(self.directory, error) from error
        heads = (self._from_file(path, _head) or {} for path in found)
        return [unit for about in heads if (unit := str(about.get("unit"))).startswith(start)]

    def read(
        self, unit: str, make: Callable[[Stored], _T], program: str | None = None, *, head: bool = False
    ) -> _T | None:
        """What `make` finds in a finished unit, of `head` without its tensors; None as for `load`.

        None, too, for a unit of another program, where one is given, and for one of which `make` raises KeyError or
        TypeError: another version wrote other records, which a note says.
        """
        stored = self.peek(unit) if head else self.load(unit)
        if stored is None or program not in (None, stored.program):
            return None
        try:
            return make(stored)
        except (KeyError, TypeError):
            note = f"The checkpoint's {unit!r} has the records of another version of nettrim: it is solved anew."
            if note not in self.notes:
                self.notes.append(note)
            return None

    def save(self, unit: str, program: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Put a finished unit on disk, straight from the tensors' memory. Raises InputError when the disk refuses."""
        about = {"unit": unit, "program": program, "record": json.dumps(record)}

        def write(stream: BinaryIO) -> None:
            sha = hashlib.sha256()

            def put(piece: bytes | memoryview) -> None:
                sha.update(piece)
                stream.write(piece)

            stream.write(_MAGIC + bytes(_HASH))  # the place of the hash, known when all is written
            write_tensors(put, tensors, {**about, "check": _check(about)})
            stream.seek(len(_MAGIC))
            stream.write(sha.digest())

        try:
            atomic_write(self.directory / _file_name(unit), write)
        except OSError as error:
            raise _unwritable(self.directory, error) from error

    def remove(self, unit: str) -> None:
        """Take a unit off the disk, if it is there. Raises InputError when the disk refuses."""
        try:
            (self.directory / _file_name(unit)).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.directory, error) from error


    def _from_file(self, path: Path, take: Callable[[BufferedIOBase], _T]) -> _T | None:
        """What `take` finds in a unit's file; None where there is none, or `take` raises ValueError for it."""
        try:
            with path.open("rb") as stream:
                return take(stream)
        except ValueError:
            return None
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise _unreadable(path, error) from error


def _whole(stream: BufferedIOBase) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of a unit's file. Raises ValueError where it is damaged."""
    head = stream.read(len(_MAGIC) + _HASH)
    if head != _MAGIC + hashlib.file_digest(stream, "sha256").digest():
        raise ValueError("the hash is another one")
    stream.seek(len(head))
    return read_tensors(stream)


def _head(stream: BufferedIOBase) -> dict[str, str]:
    """The metadata of a unit's file, without `check`. Raises ValueError where it is damaged."""
    try:
        (size,) = struct.unpack("<Q", stream.read(len(_MAGIC) + _HASH + 8)[-8:])
        about = dict(json.loads(stream.read(min(size, _HEADER)))["__metadata__"])
    except (struct.error, KeyError, TypeError, RecursionError) as error:
        raise ValueError("the head cannot be read") from error
    if about.pop("check", None) != _check(about):
        raise ValueError("the head's hash is another one")
    return about


def _stored(unit: str, about: Mapping[str, str], tensors: dict[str, Tensor]) -> Stored | None:
    """What a file holds, by its metadata; None where it is another unit's."""
    try:
        return Stored(about["program"], tensors, json.loads(about["record"])) if about["unit"] == unit else None
    except (KeyError, TypeError, ValueError):
        return None


def _check(about: Mapping[str, str]) -> str:
    """A digest of a file's metadata, by which a head can be believed without the rest."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor | None]) -> str:
    """SHA-256 of named tensors: types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        if tensor is None:
            sha.update(f"{name} none\n".encode())
            continue
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for piece in raw(tensor):
            sha.update(piece)
    return sha.hexdigest()


def _path(directory: str | os.PathLike[str]) -> Path:
    """Refuse what can be no path."""
    try:
        if b"\0" not in os.fsencode(path := Path(directory)):
            return path
    except (TypeError, UnicodeEncodeError):
        pass
    raise InputError(should("checkpoint", "the path of a directory", repr(directory)))


def _check_free(path: Path) -> None:
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if others and MANIFEST not in others:  # else another share of the same run has written it just now
        got = f"{str(path)!r}, which holds {sorted(others)[0]!r} but no {MANIFEST}"
        raise InputError(should("checkpoint", "a new directory, or one of an earlier run", got, "Choose another name."))


def _compare(path: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse a checkpoint of another run; remarks about other versions."""
    try:
        before = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        kind = before["format"]
        if not all(isinstance(before.get(part, {}), dict) for part in (*_PARTS, "versions")):
            raise TypeError("parts are objects")
    except (ValueError, KeyError, TypeError) as error:
        got = f"{str(path)!r} with an unreadable {MANIFEST}"
        raise InputError(should("checkpoint", "one of an earlier run", got, "Delete it, or choose another.")) from error
    if kind != _FORMAT:
        cure = "Resume with the version of nettrim that wrote it."
        raise InputError(should("checkpoint", f"in format {_FORMAT}", f"format {kind!r}", cure))
    for part in _PARTS:
        within = _MEASURED if part == "model" else 0.0
        found = list(_differences(before.get(part, {}), manifest.get(part, {}), within))
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            got = f"{str(path)!r}, of another {part}: {', '.join(found[:_SHOWN])}{more}"
            cure = "Choose another directory, or delete this one."
            raise InputError(should("checkpoint", "of this model, data and recipe", got, cure))
    other = [
        f"{name} {version} (here {manifest['versions'].get(name)})"
        for name, version in before.get("versions", {}).items()
        if version != manifest["versions"].get(name)
    ]
    return (f"Resumed from a checkpoint begun with {', '.join(other)}.",) if other else ()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], within: float) -> Iterator[str]:
    """Names with other values; numbers that were measured may differ by the share `within`."""
    for name in [*before, *(name for name in now if name not in before)]:
        if name not in now or name not in before:
            yield f"{name} {'there' if name in before else 'here'} only"
        elif before[name] != now[name] and not _near(before[name], now[name], within):
            yield f"{name} {_show(before[name])} there, {_show(now[name])} here"


def _near(before: Any, now: Any, within: float) -> bool:
    return isinstance(before, float) and isinstance(now, float) and math.isclose(before, now, rel_tol=within)


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_name(unit: str) -> str:
    return f"{_readable(unit)}.{hashlib.sha256(unit.encode()).hexdigest()[:8]}.block"


def _readable(unit: str) -> str:
    """How the name of a unit's file begins; names that begin alike do so here."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", unit).lstrip(".")[:80]


def _unreadable(path: Path, error: OSError) -> InputError:
    got = f"{str(path)!r} ({error.strerror})"
    cure = "Remove it, or choose another directory."
    return InputError(should("checkpoint", "a directory whose files can be read", got, cure))


def _unwritable(path: Path, error: OSError) -> InputError:
    got = f"{str(path)!r} ({error.strerror})"
    return InputError(should("checkpoint", "a directory with room that can be written", got, "What is done is kept."))
