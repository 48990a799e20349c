"""Finished work on disk: a run that is killed at any moment goes on where it was. No pickle anywhere.

checkpoint.json   which model, data and recipe the directory belongs to, and the versions that wrote it
*.block           one finished unit of work: a hash of what follows, then safetensors with the record as metadata, which
                  has a hash of its own
log.jsonl         one line a unit (`nettrim.log`)

Every file is written beside its place, flushed to the disk and renamed into place: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.files import atomic_write
from nettrim.version import __version__

MANIFEST = "checkpoint.json"
_FORMAT = 1
_MAGIC = b"nettrim\x01"
_PIECE = 1 << 24  # bytes that are hashed at a time
_SHOWN = 3  # differences named in a message
_HEADER = 1 << 26  # bytes of a header that is believed

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
        something else, and for one that cannot be written.
        """
        path = Path(directory)
        manifest = {
            "format": _FORMAT,
            "versions": {"nettrim": __version__, "torch": torch.__version__, "python": platform.python_version()},
            **json.loads(json.dumps(identity)),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            if not (path / MANIFEST).exists():
                _check_free(path)
                atomic_write(path / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
            return cls(path, [*_compare(path, manifest)])
        except OSError as error:
            raise _unwritable(path, error) from error

    def load(self, unit: str) -> Stored | None:
        """A finished unit; None where there is none, or its file is truncated or damaged."""
        try:
            content = (self.directory / _file_name(unit)).read_bytes()
        except FileNotFoundError:
            return None
        head = len(_MAGIC) + 32
        body = content[head:]
        if content[:head] != _MAGIC + hashlib.sha256(body).digest():
            return None
        try:
            (size,) = struct.unpack("<Q", body[:8])
            return _stored(unit, _about(body[8 : 8 + size]), load_tensors(body))
        except (struct.error, SafetensorError):
            return None

    def peek(self, unit: str) -> Stored | None:
        """A finished unit without its tensors: its head alone is read, and checked for damage; None as for `load`."""
        try:
            with (self.directory / _file_name(unit)).open("rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(len(_MAGIC) + 40)[-8:])
                about = _about(stream.read(min(size, _HEADER)))
        except (FileNotFoundError, struct.error):
            return None
        return _stored(unit, about, {}) if about.pop("check", None) == _check(about) else None

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
        """Put a finished unit on disk. Raises InputError when the disk refuses."""
        about = {"unit": unit, "program": program, "record": json.dumps(record)}
        body = save_tensors(
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()},
            {**about, "check": _check(about)},
        )
        try:
            atomic_write(self.directory / _file_name(unit), _MAGIC + hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise _unwritable(self.directory, error) from error

    def remove(self, unit: str) -> None:
        """Take a unit off the disk, if it is there. Raises InputError when the disk refuses."""
        try:
            (self.directory / _file_name(unit)).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.directory, error) from error


def _about(header: bytes) -> dict[str, str]:
    """The metadata in a file's header; empty where it is damaged."""
    try:
        return dict(json.loads(header)["__metadata__"])
    except (KeyError, TypeError, ValueError):
        return {}


def _stored(unit: str, about: Mapping[str, str], tensors: dict[str, Tensor]) -> Stored | None:
    """What a file holds, by its metadata; None where it is another unit's."""
    try:
        return Stored(about["program"], tensors, json.loads(about["record"])) if about["unit"] == unit else None
    except (KeyError, ValueError):
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
        for part in _pieces(tensor.detach()):
            sha.update(memoryview(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return sha.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor's entries in order, in pieces small enough to be copied."""
    if tensor.numel() * tensor.element_size() <= _PIECE or len(tensor) == 1 == tensor.ndim:
        yield from (tensor,) if tensor.numel() else ()
    elif len(tensor) == 1:
        yield from _pieces(tensor[0])
    else:
        yield from (piece for half in tensor.tensor_split(2) for piece in _pieces(half))


def _sweep(path: Path) -> None:
    """Remove what killed runs on this machine left half-written."""
    for temporary in path.glob(f".*.{socket.gethostname()}.*"):
        process = temporary.name.rpartition(".")[2]
        if process.isdigit() and not _alive(int(process)):
            temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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
    except (ValueError, KeyError, TypeError) as error:
        got = f"{str(path)!r} with an unreadable {MANIFEST}"
        raise InputError(should("checkpoint", "one of an earlier run", got, "Delete it, or choose another.")) from error
    if kind != _FORMAT:
        cure = "Resume with the version of nettrim that wrote it."
        raise InputError(should("checkpoint", f"in format {_FORMAT}", f"format {kind!r}", cure))
    for part in ("model", "data", "recipe"):
        found = list(_differences(before.get(part, {}), manifest.get(part, {})))
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


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in [*before, *(name for name in now if name not in before)]:
        if name not in now or name not in before:
            yield f"{name} {'there' if name in before else 'here'} only"
        elif before[name] != now[name]:
            yield f"{name} {_show(before[name])} there, {_show(now[name])} here"


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_name(unit: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", unit).lstrip(".")[:80]
    return f"{readable}.{hashlib.sha256(unit.encode()).hexdigest()[:8]}.block"


def _unwritable(path: Path, error: OSError) -> InputError:
    got = f"{str(path)!r} ({error.strerror})"
    return InputError(should("checkpoint", "a directory with room that can be written", got, "What is done is kept."))
