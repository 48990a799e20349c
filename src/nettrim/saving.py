"""A trim on disk: safetensors, JSON and TOML in one directory, which appears whole or not at all. No pickle anywhere.

model.safetensors   the trimmed model's tensors         recipe.toml   every option
proofs.safetensors  the select stage's weights and      report.json   the report as a dictionary
                    multipliers, for `nettrim.verify`   nettrim.json  versions, hashes, structure, data digest

Of an ONNX file model.onnx and original.onnx stand in place of model.safetensors: `nettrim.onnx_saving`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from nettrim.errors import InputError, should
from nettrim.layerwise import Backing, LayerOutcome
from nettrim.models.state import state_of
from nettrim.models.torch_network import load_into
from nettrim.recipe import Recipe
from nettrim.report import Report
from nettrim.samples import Samples
from nettrim.version import __version__

FORMAT = 1
MODEL, PROOFS, REPORT, RECIPE, INDEX = (
    "model.safetensors", "proofs.safetensors", "report.json", "recipe.toml", "nettrim.json"
)  # fmt: skip
ONNX_MODEL, ONNX_ORIGINAL = "model.onnx", "original.onnx"
PAGE = "report.html"
SHRUNK, ONNX_SHRUNK = "shrunk.safetensors", "shrunk.onnx"
_CERTIFIED = {MODEL, PROOFS, REPORT, RECIPE, INDEX, ONNX_MODEL, ONNX_ORIGINAL, PAGE}
_OURS = _CERTIFIED | {SHRUNK, ONNX_SHRUNK}  # what may lie in a directory that is replaced
_TURNS = 100  # attempts at a directory that others write at the same time


class Provable(Protocol):
    """A trim whose certificates can be saved, whatever kind of model it is of."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def layers(self) -> tuple[LayerOutcome, ...]: ...


@dataclass(frozen=True, eq=False)
class SavedTrim:
    """What goes into a directory."""

    model: nn.Module
    report: Report
    recipe: Recipe
    layers: tuple[LayerOutcome, ...]
    plan: Mapping[str, Any]
    samples: Samples
    original: str  # the digest of the model that was trimmed


@dataclass(frozen=True, eq=False)
class Claims:
    """What a directory claims, and what backs it, whatever kind of model it is of."""

    report: Mapping[str, Any]
    recipe: Recipe
    backing: dict[str, tuple[Backing, ...]]  # by layer
    kappa: dict[str, float]  # by layer: the risk coefficient it was solved with
    data: Mapping[str, Any]  # "sha256", "samples", "separate_holdout"


@dataclass(frozen=True, eq=False)
class LoadedTrim:
    """What a directory holds, its hashes checked."""

    tensors: dict[str, Tensor]
    plan: Mapping[str, Any]
    claims: Claims
    original: str | None  # the digest of the model that was trimmed; None in a directory of an earlier version


def save_trim(trim: SavedTrim, directory: Path) -> Path:
    """Write a trim; see `Trimmed.save`."""
    proofs, layers = proofs_of(trim)
    files = {
        MODEL: save_tensors(state_of(trim.model)),
        PROOFS: save_tensors(proofs),
        REPORT: json_bytes(trim.report.to_dict()),
        RECIPE: trim.recipe.to_toml().encode(),
    }
    versions = {"nettrim": __version__, "torch": torch.__version__, "python": platform.python_version()}
    index = index_of(trim.samples, layers, files, versions)
    files[INDEX] = json_bytes({**index, "structure": dict(trim.plan), "original": trim.original})
    with new_directory(directory) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return directory


def index_of(
    samples: Samples, layers: Mapping[str, Any], files: Mapping[str, bytes], versions: Mapping[str, str]
) -> dict[str, Any]:
    """nettrim.json: the hash of every file, which data it was, and what `proofs_of` says of the layers."""
    return {
        "format": FORMAT,
        "versions": dict(versions),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
        "data": {"sha256": samples.digest, "samples": samples.count, "separate_holdout": samples.separate},
        "layers": dict(layers),
    }


def load(directory: str | Path, model: nn.Module) -> nn.Module:
    """The trimmed model of a directory: a copy of `model`, which gives the structure, with the saved weights.

    Raises InputError for a directory that is not one of `save` or was changed since, ModelError when `model`
    is not the one that was trimmed.
    """
    saved = read_trim(Path(directory))
    return load_into(model, saved.tensors, saved.plan)


def read_trim(directory: Path) -> LoadedTrim:
    """Read a directory, checking every hash."""
    if holds_onnx(directory):
        cure = f"Read its {ONNX_MODEL} with onnx.load."
        raise InputError(should("directory", "one of a torch module", f"{str(directory)!r}, of an ONNX file", cure))
    index, contents = read_files(directory, {MODEL, PROOFS, REPORT, RECIPE})
    claims = read_claims(directory, index, contents)
    try:
        return LoadedTrim(load_tensors(contents[MODEL]), index["structure"], claims, index.get("original"))
    except (KeyError, SafetensorError) as error:
        raise InputError(should("directory", "one that `save` wrote", f"{str(directory)!r} ({error!r})")) from error


def holds_onnx(directory: Path) -> bool:
    """Whether a directory holds a trimmed ONNX file."""
    return (directory / INDEX).is_file() and (directory / ONNX_MODEL).is_file()


def read_claims(directory: Path, index: Mapping[str, Any], contents: Mapping[str, bytes]) -> Claims:
    """What the files of a directory claim. Raises InputError when they do not fit together."""
    try:
        proofs = load_tensors(contents[PROOFS])
        recipe = recipe_with_arrays(contents[RECIPE].decode(), proofs)
        backing, kappa = backing_of(index, proofs)
        return Claims(json.loads(contents[REPORT]), recipe, backing, kappa, index["data"])
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(should("directory", "one that `save` wrote", f"{str(directory)!r} ({error!r})")) from error


def proofs_of(trim: Provable) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors that back the certificates, and what the index says of each layer ("layers").

    Multipliers are kept while they fit into the recipe's `certificate_megabytes`.
    """
    left = trim.recipe.certificate_megabytes * 2**20
    tensors: dict[str, Tensor] = dict(_penalty_tensors(trim.recipe))
    layers: dict[str, Any] = {}
    for place, outcome in enumerate(trim.layers):
        size = sum(part.dual.nbytes for part in outcome.backing if part.dual is not None)
        kept = size <= left and outcome.proved
        left -= size if kept else 0
        for piece, part in enumerate(outcome.backing):
            tensors[f"weight.{place}.{piece}"] = part.weight.detach().cpu().contiguous()
            if kept and part.dual is not None:
                tensors[f"dual.{place}.{piece}"] = part.dual.detach().cpu().contiguous()
        layers[outcome.result.name] = {"pieces": len(outcome.backing), "kappa": outcome.kappa, "duals": kept}
    return tensors, layers


def backing_of(
    index: Mapping[str, Any], proofs: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Backing, ...]], dict[str, float]]:
    """By layer: what `proofs_of` kept, and its kappa. KeyError when something is missing."""
    backing = {
        name: tuple(
            Backing(proofs[f"weight.{place}.{piece}"], proofs[f"dual.{place}.{piece}"] if entry["duals"] else None)
            for piece in range(entry["pieces"])
        )
        for place, (name, entry) in enumerate(index["layers"].items())
    }
    if not all(backing.values()):
        raise KeyError("pieces")
    return backing, {name: float(entry["kappa"]) for name, entry in index["layers"].items()}


def _penalty_tensors(recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    """Arrays of penalties, which the recipe file only names."""
    penalties = recipe.penalty if isinstance(recipe.penalty, Mapping) else {"": recipe.penalty}
    for name, penalty in penalties.items():
        for key, value in vars(penalty).items():
            if isinstance(value, Tensor) and value.ndim:
                yield f"penalty.{name}.{key}", value.detach().cpu().contiguous()


def recipe_with_arrays(text: str, proofs: Mapping[str, Tensor]) -> Recipe:
    """The recipe file with the arrays of its penalties put back."""
    data = Recipe.parse(text)
    penalty = data.get("penalty", {})
    tables = {"": penalty} if "kind" in penalty else penalty
    for name, table in tables.items():
        for key in table:
            if f"penalty.{name}.{key}" in proofs:
                table[key] = proofs[f"penalty.{name}.{key}"]
    return Recipe.from_dict(data)


def read_files(directory: Path, wanted: set[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The index of a directory and the bytes of its files, which must be the `wanted` ones, every hash checked."""
    if not (directory / INDEX).is_file():
        got = f"{str(directory)!r}, which has no {INDEX}"
        raise InputError(should("directory", "one that `save` wrote", got))
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        version, names = index["format"], set(index["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(should("directory", f"one with a readable {INDEX}", f"{error!r}", "Save it again.")) from error
    if version != FORMAT:
        cure = "Read it with the version of nettrim that wrote it."
        raise InputError(should("directory", f"in format {FORMAT}", f"format {version!r}", cure))
    if names != wanted:
        raise InputError(should("directory", "one with the files that `save` writes", f"{sorted(names)}"))
    return index, {name: _read_checked(directory, name, sha) for name, sha in index["files"].items()}


def _read_checked(directory: Path, name: str, sha: str) -> bytes:
    """The bytes of a file of a saved trim, whose hash was written down. Raises InputError."""
    try:
        content = (directory / name).read_bytes()
    except OSError as error:
        got = f"{str(directory)!r} without a readable {name} ({error.strerror})"
        raise InputError(should("directory", "complete", got, "Save it again.")) from error
    if hashlib.sha256(content).hexdigest() != sha:
        raise InputError(should("directory", "as `save` left it", f"a changed {name}", "Save it again."))
    return content


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its place when all went well.

    Where `directory` is a link, what it leads to is replaced.
    """
    directory = directory.resolve()
    check_replaceable(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # not tempfile: the directory gets the permissions that the user's umask asks for
        temporary = directory.parent / f".{directory.name}-{secrets.token_hex(4)}"
        temporary.mkdir()
    except OSError as error:
        got = f"{str(directory)!r} ({error.strerror})"
        raise InputError(should("directory", "one that can be written", got, "Choose another place.")) from error
    try:
        yield temporary
        _replace(temporary, directory)
    except OSError as error:
        got = f"{str(directory)!r} ({error.strerror})"
        raise InputError(should("directory", "one that can be written", got, "Choose another place.")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(directory: Path, name: str = "directory") -> None:
    """Refuse a directory that exists and is not `replaceable`. Raises InputError, calling it `name`."""
    if not directory.exists() or replaceable(directory):
        return
    got, cure = f"{str(directory)!r}, which holds something else", "Choose another name."
    if directory.is_dir() and directory.is_mount():
        got, cure = f"{str(directory)!r}, where something is mounted", "Name a directory inside it."
    raise InputError(should(name, "new, empty, or one that `save` wrote", got, cure))


def belongs_to_trim(path: Path) -> bool:
    """Whether a file is, or would take the place of, one that a saved trim consists of."""
    return path.name in _CERTIFIED and (path.parent / INDEX).is_file()


def _replace(temporary: Path, directory: Path) -> None:
    """Rename into place; what stood there is moved aside first and put back if that fails.

    Jobs of an array may write the same directory at the same time: whoever finds it gone, or there, tries again.
    """
    for left in reversed(range(_TURNS)):
        try:
            return _swap(temporary, directory)
        except OSError as error:
            if not left or error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
            time.sleep(0.01)


def _swap(temporary: Path, directory: Path) -> None:
    if not directory.exists():
        temporary.rename(directory)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)) / "old"
    try:
        directory.rename(aside)
        try:
            temporary.rename(directory)
        except OSError:
            aside.rename(directory)
            raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def replaceable(directory: Path) -> bool:
    """Whether a directory is empty, or one that an earlier save wrote and nobody put anything into."""
    if not directory.is_dir() or directory.is_mount():
        return False
    entries = {entry.name for entry in directory.iterdir()}
    return not entries or (INDEX in entries and entries <= _OURS)


def json_bytes(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Strict JSON, in UTF-8, with a last newline."""
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
