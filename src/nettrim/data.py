"""Data files for the command line and the experiments: .npz, .npy, .safetensors, or a folder of them.

Nothing here can run code: no pickle is ever read, and no file may unfold to more than `max_bytes`.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nettrim.errors import DataError, should

MAX_BYTES = 8 * 2**30  # unfolded, over all files
_RATIO = 200  # a compressed array that unfolds further than this, and to more than _SMALL, is taken for a bomb
_SMALL = 64 * 2**20
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin", ".ckpt")
_LAYOUT = "an array 'inputs' (or several named 'inputs.NAME') and optionally 'labels'"
_RESAVE = 'Save it again with numpy.savez("data.npz", inputs=..., labels=...).'


@dataclass(frozen=True, eq=False)
class DataFile:
    """Samples read from a file or folder, checked: finite, at least one, as many labels as samples."""

    inputs: Tensor | dict[str, Tensor]  # (samples, ...), or one such tensor for each input of the model
    labels: Tensor | None  # (samples, ...)
    digest: str  # see `digest`

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.inputs if isinstance(self.inputs, Tensor) else next(iter(self.inputs.values())))


def load_data(path: str | Path, *, max_bytes: int = MAX_BYTES) -> DataFile:
    """Read calibration or evaluation data.

    A file holds an array `inputs` (samples, ...), or several named `inputs.NAME` for a model with several inputs, and
    optionally `labels` (samples, ...); a .npy file holds the inputs alone. The files of a folder are read in the order
    of their names and their samples joined; a folder of just `inputs.npy` and `labels.npy` is one data set.

    Raises DataError for a file that is missing, damaged, a pickle, not finite, of another layout, or larger than
    `max_bytes` once unfolded.
    """
    path = Path(path)
    if path.is_dir():
        parts = _read_folder(path, max_bytes)
    elif path.is_file():
        parts = [(path, _read(path, max_bytes))]
    else:
        raise DataError(should("data", "a file or folder that exists", f"'{path}'"))
    for source, arrays in parts:
        _check(arrays, source)
    arrays = parts[0][1] if len(parts) == 1 else _join(parts)
    labels = arrays.get("labels")
    if "inputs" in arrays:
        inputs = arrays["inputs"]
    else:
        inputs = {name.removeprefix("inputs."): array for name, array in arrays.items() if name != "labels"}
    return DataFile(inputs, labels, digest(arrays))


def digest(arrays: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and bytes, whatever file format they came from."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        sha.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        sha.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read_folder(folder: Path, max_bytes: int) -> list[tuple[Path, dict[str, Tensor]]]:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if not files:
        raise DataError(should("data", "a folder with at least one data file", f"the empty folder '{folder}'"))
    parts: list[tuple[Path, dict[str, Tensor]]] = []
    for file in files:
        if not file.is_file():
            raise DataError(should("data", "a folder of files only", f"'{file}'"))
        arrays = _read(file, max_bytes)
        max_bytes -= sum(array.nbytes for array in arrays.values())
        parts.append((file, arrays))
    if {file.name for file in files} == {"inputs.npy", "labels.npy"}:
        return [(folder, {"inputs": parts[0][1]["inputs"], "labels": parts[1][1]["inputs"]})]
    return parts


def _read(path: Path, max_bytes: int) -> dict[str, Tensor]:
    suffix = path.suffix.lower()
    with _reading(path):
        size = path.stat().st_size
        if size > max_bytes:
            raise _too_large(path, size, max_bytes)
        _refuse_pickle(path)
        if suffix == ".npz":
            return _read_npz(path, max_bytes)
        if suffix == ".npy":
            with path.open("rb") as stream:
                return {"inputs": _tensor(_read_npy(stream, size, path), path)}
        if suffix == ".safetensors":
            with safe_open(path, framework="pt") as archive:
                # cloned, because the file may change while its map is open
                return {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
    raise DataError(should("data", "a .npz, .npy or .safetensors file", f"'{path}'", _RESAVE))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Every way in which a damaged file shows itself, as one sentence."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(should("data", "a file that can be read", f"'{path}': {error.strerror or error}")) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, SafetensorError, RuntimeError, ValueError) as error:
        cure = "Write or copy it again."
        raise DataError(should("data", "a whole, undamaged file", f"'{path}': {error}", cure)) from error


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(9)
    # pickles open with 0x80 and their protocol; so may a safetensors header's length, which "{" follows
    bare = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[8:] != b"{"
    if path.suffix.lower() in PICKLES or bare:
        raise _pickle(path)
    if head[:2] == b"PK":  # torch saves a zip file with a pickle inside
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".pkl") for name in archive.namelist()):
                raise _pickle(path)


def _pickle(path: Path) -> DataError:
    cure = f"A pickle can run any code when it is opened. {_RESAVE}"
    return DataError(should("data", "a file without pickled objects", f"'{path}', which holds a pickle", cure))


def _too_large(path: Path, size: int, max_bytes: int) -> DataError:
    cure = "Use fewer samples, or pass a larger `max_bytes` if you trust the file."
    return DataError(should("data", f"at most {max_bytes:,} bytes unfolded", f"'{path}' with {size:,}", cure))


def _read_npz(path: Path, max_bytes: int) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        declared = sum(member.file_size for member in members)
        if declared > max_bytes:
            raise _too_large(path, declared, max_bytes)
        packed = path.stat().st_size
        if declared > max(_SMALL, _RATIO * packed):
            got = f"'{path}': {packed:,} bytes that unfold to {declared:,}"
            raise DataError(should("data", f"an archive that unfolds to at most {_RATIO} times its size", got, _RESAVE))
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays or not member.filename.endswith(".npy"):
                raise DataError(should("data", f"an archive of {_LAYOUT}", f"'{member.filename}' in '{path}'", _RESAVE))
            with archive.open(member) as stream:
                arrays[name] = _tensor(_read_npy(stream, member.file_size, path), path)
    return arrays


def _read_npy(stream: IO[bytes], size: int, path: Path) -> np.ndarray:
    """Read one array whose header must agree with the size declared for it, before anything is allocated."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format, which only structured arrays need")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read_header(stream)
    except Exception as error:  # NumPy's parser lets any exception of Python's tokenizer through
        raise ValueError(f"its header cannot be read ({error})") from error
    if dtype.hasobject:
        raise _pickle(path)
    if dtype.kind not in "biuf":
        raise DataError(should("data", "arrays of real numbers", f"type {dtype} in '{path}'"))
    count = math.prod(shape) * dtype.itemsize
    if count > size or any(length < 0 for length in shape):
        raise ValueError(f"its header promises an array of {count:,} bytes, but {size:,} is all there is")
    buffer = bytearray(stream.read(count))
    if len(buffer) < count or stream.read(1):
        raise ValueError(f"its header promises an array of {count:,} bytes, which is not what follows")
    array = np.ndarray(shape, dtype, buffer, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)


def _tensor(array: np.ndarray, path: Path) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise DataError(should("data", "of a type torch knows", f"{array.dtype} in '{path}'")) from error


def _check(arrays: Mapping[str, Tensor], path: Path) -> None:
    names = set(arrays) - {"labels"}
    if names != {"inputs"} and not (names and all(name.startswith("inputs.") for name in names)):
        got = ", ".join(repr(name) for name in sorted(arrays)) or "none"
        raise DataError(should("data", f"a file with {_LAYOUT}", f"{got} in '{path}'", _RESAVE))
    lengths = {name: len(array) if array.dim() else 0 for name, array in arrays.items()}
    if 0 in lengths.values():
        name = next(name for name, length in lengths.items() if length == 0)
        got = f"shape {tuple(arrays[name].shape)} in '{path}'"
        raise DataError(should(name, "an array (samples, ...) with at least one sample", got))
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{length} {name}" for name, length in sorted(lengths.items()))
        raise DataError(should("data", "as many labels as samples, in every array", f"{got} in '{path}'"))
    for name, array in arrays.items():
        if array.is_complex():
            raise DataError(should(name, "real", f"{array.dtype} in '{path}'"))
        _check_finite(name, array, path)


def _check_finite(name: str, array: Tensor, path: Path) -> None:
    if not array.is_floating_point():
        return
    finite = array.isfinite() if array.element_size() > 1 else array.float().isfinite()
    if finite.all():
        return
    bad = (~finite).nonzero()
    got = f"{array[tuple(bad[0])].item()} in sample {int(bad[0, 0])} ({len(bad)} such values) of '{path}'"
    raise DataError(should(name, "finite everywhere", got, "Remove or mend those samples."))


def _join(parts: Sequence[tuple[Path, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    (first, model), *others = parts

    def layout(arrays: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {name: (array.dtype, tuple(array.shape[1:])) for name, array in arrays.items()}

    for path, arrays in others:
        if layout(arrays) != layout(model):
            be = f"files of one layout (names, types and shapes but for the samples), as '{first.name}' has it"
            raise DataError(should("data", be, f"another in '{path.name}'"))
    return {name: torch.cat([arrays[name] for _, arrays in parts]) for name in model}
